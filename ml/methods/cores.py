"""CORES: a regulariser that makes a network sure parts right labels from wrong ones, and a sieve drops the wrong.

Cheng et al., ICLR 2021, Eq. 3 and 5. After a plain beginning the weight of the regulariser grows; when it is fully on,
only labels whose loss is no larger than an image's mean loss over all labels are trained on.

The beginning and the growth are shares of the epochs, the released code's are 10 and 30 of 100. The learning rate is
the spec's, divided by one plus the regulariser's weight.

Published: resnet34, 100 epochs, batches of 64, learning rate 0.1 times 0.1 at 50, neither momentum nor weight decay
(others who ran it used 0.9 and 5e-4), nothing held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field
from torch import Tensor

from ml.blocks import sample_selection, single_network
from ml.method import MethodParams, Network, Phase, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "CORES",
    "paper": "Cheng et al.: Learning with Instance-Dependent Label Noise: A Sample Sieve Approach (ICLR 2021)",
    "idea": "Rewarding sure answers parts the losses of right and wrong labels. A sieve then keeps the labels whose "
    "loss is below the image's mean over all labels.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {"default": {}},
}


class Params(MethodParams):
    """The settings of CORES."""

    plain: float = Field(
        default=0.1, ge=0.0, le=1.0, description="Share of the epochs that train without the regulariser."
    )
    growth: float = Field(
        default=0.3, ge=0.0, le=1.0, description="Share of the epochs after that, over which its weight grows from 0."
    )
    sieve_from: float = Field(default=0.31, ge=0.0, le=1.0, description="Share of the epochs before labels are sieved.")
    beta: float = Field(default=2.0, ge=0.0, le=20.0, description="The regulariser's weight once it is fully on.")


class Method(single_network.SingleNetworkMethod[Params]):
    """One network and its sieve."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.sieve = sample_selection.SampleSelection(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase; what changes with its epochs are the regulariser and the sieve."""
        p = self.params
        begin, growth, since = (round(share * training.epochs) for share in (p.plain, p.growth, p.sieve_from))
        return [
            sample_selection.selection_phase(
                self.network,
                self.sieve,
                training,
                epochs=training.epochs,
                begin=begin,
                growth=growth,
                since=max(1, since),
                largest=p.beta,
                factor=training.factor,
            )
        ]
