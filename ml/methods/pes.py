"""Progressive early stopping: later layers memorise sooner, so each part of a network is stopped at its own time.

Bai et al., NeurIPS 2021, Algorithm 1, without semi-supervision. All labels train the network until T1; its last stage
and its classifier are renewed and trained alone for T2, the classifier once more for T3; the rest of the training sees
the images whose given label the network predicts, drawn anew every epoch and weighed by class.

T1, T2 and T3 are shares of the epochs, and all phases together make the job's (the released code gives T2 and T3 on top
of its 200). The spec's schedule counts through. Momentum begins anew after the renewal. `frozen_tail` is what the
released code does: its optimiser holds the weights from before the renewal, so that the renewed parts rest ever after.
A class of which nothing is confident keeps its last confident images, where the code forgets it; at first, all count.

Published: resnet18 (CIFAR-10) and resnet34 (CIFAR-100), 200 epochs, batches of 128, SGD 0.1 times 0.1 at 100 and 150,
weight decay 1e-4, a tenth held out. Clothing1M in 5 epochs at 0.005 with weight decay 1e-3 and batches of 64; its two
networks and its clean class prior are left out.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from ml.blocks import confidence, losses, reinitialisation, schedules, single_network
from ml.method import Batch, MethodParams, Network, Pass, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "PES",
    "paper": "Bai et al.: Understanding and Improving Early Stopping for Learning with Noisy Labels (NeurIPS 2021)",
    "idea": "Later layers memorise wrong labels sooner. They are renewed and trained again, briefly; then only the "
    "images whose label the network predicts itself are trained on.",
    "relative_cost": 1.2,
    "needs": [],
    "presets": {
        "cifar10": {},
        "cifar100": {"warm_up": 0.15},
        "clothing1m": {
            "warm_up": 0.6,
            "refine_last_stage": 0.0,
            "refine_classifier": 0.14,
            "refine_learning_rate": 5e-6,
        },
    },
}


class Params(MethodParams):
    """The settings of PES."""

    warm_up: float = Field(
        default=0.125, gt=0.0, le=1.0, description="T1: share of the epochs in which all labels train all parts."
    )
    refine_last_stage: float = Field(
        default=0.035,
        ge=0.0,
        le=0.5,
        description="T2: share of the epochs in which a new last stage and classifier train alone; 0 renews none.",
    )
    refine_classifier: float = Field(
        default=0.025,
        ge=0.0,
        le=0.5,
        description="T3: share of the epochs in which a new classifier trains alone; 0 renews none.",
    )
    refine_learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=0.1,
        description="Of Adam in both; in fewer steps than the paper's it is raised, so that a new part comes as far.",
    )
    after_refine: Literal["train_all", "frozen_tail"] = Field(
        default="train_all",
        description="What learns from confident images. train_all: everything; frozen_tail: all but the renewed parts, "
        "as in the released code.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Algorithm 1."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.confident = confidence.ConfidentSamples(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """All labels; two renewals; confident images. Too few epochs for all four drop the renewals first."""
        p = self.params
        shares = (p.warm_up, p.refine_last_stage, p.refine_classifier)
        first, stage, classifier, rest = schedules.phase_lengths(training.epochs, shares)
        begins = first + stage + classifier
        renewed = reinitialisation.LATER_PARTS if stage else reinitialisation.LATER_PARTS[1:] if classifier else ()
        learning = [
            part for part in reinitialisation.NETWORK_PARTS if p.after_refine == "train_all" or part not in renewed
        ]

        stages = reinitialisation.FreezeSchedule(self.network, self.make, training, len(self.confident.labels))
        rate = p.refine_learning_rate
        found = [
            Phase(first, self.plain, stages.sgd(0, first, reinitialisation.NETWORK_PARTS), name="warm-up"),
            stages.refinement(first, stage, reinitialisation.LATER_PARTS, rate, self.plain),
            stages.refinement(first + stage, classifier, reinitialisation.LATER_PARTS[1:], rate, self.plain),
            Phase(
                rest,
                self._weighted,
                stages.sgd(begins, rest, learning),
                enter=lambda _: reinitialisation.train_only(self.network, learning),
                begin_epoch=self._select,
                passes=lambda: [Pass(self.confident.mask)],
                name="confident",
            ),
        ]
        return [phase for phase in found if phase.epochs]

    def _select(self, lab: TrainContext) -> None:
        self.confident.select(lab, self.network)

    def _weighted(self, batch: Batch) -> Tensor:
        logits = self.network(batch.images)
        batch.record_logits(logits)
        return losses.weighted_cross_entropy(logits, batch.labels, self.confident.class_weights)
