"""CORES: a regulariser that rewards confident predictions separates right labels from wrong ones, which are left out.

Cheng et al., ICLR 2021. One phase in three steps:

1. Plain cross-entropy, for a share of the epochs.
2. The regulariser's weight grows (Eq. 3).
3. Only labels whose loss is no larger than the image's mean loss over all labels are trained on (Eq. 5).

The released code has 10 epochs of the first and 30 of the second in 100. The learning rate is the training's, divided
by one plus the regulariser's weight.

Published: resnet34, 100 epochs, batches of 64, learning rate 0.1 times 0.1 at 50, neither momentum nor weight decay
(others who ran it used 0.9 and 5e-4), nothing held out.

Shapes: `N` images, `B` batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ml.blocks import sample_selection, single_network
from ml.method import MethodParams, Network, Phase, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "CORES",
    "paper": "Cheng et al.: Learning with Instance-Dependent Label Noise: A Sample Sieve Approach (ICLR 2021)",
    "idea": "Rewarding confident predictions separates the losses of right and wrong labels. Only labels whose loss is "
    "below the image's mean loss over all labels are then trained on.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {"default": {}},
    "training": {
        "*": {
            "network": "resnet34",
            "epochs": 100,
            "batch_size": 64,
            "learning_rate": 0.1,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (0.5,),
            "validation_fraction": 0.0,
        }
    },
}


class Params(MethodParams):
    """Parameters of CORES."""

    plain: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share of the epochs that train without the regulariser."
    )
    growth: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="Share of the epochs after that over which the regulariser's weight grows from 0.",
    )
    sieve_from: float = Field(
        default=0.31, ge=0.0, le=1.0, description="Share of the epochs before labels are selected."
    )
    beta: float = Field(default=2.0, ge=0.0, le=20.0, description="The regulariser's weight once it is fully on.")


class Method(single_network.SingleNetworkMethod[Params]):
    """One network and the selection of its labels."""

    former_state_names: ClassVar = {"sieve.kept": "selection.selected", "sieve.": "selection."}

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.selection = sample_selection.SampleSelection(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        p = self.params
        begin, growth, select_from = (round(share * training.epochs) for share in (p.plain, p.growth, p.sieve_from))
        return [
            sample_selection.selection_phase(
                self.network,
                self.selection,
                training,
                epochs=training.epochs,
                begin=begin,
                growth=growth,
                select_from=max(1, select_from),
                largest=p.beta,
                factor=training.factor,
            )
        ]
