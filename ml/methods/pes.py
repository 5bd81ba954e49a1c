"""Progressive early stopping (PES): later layers memorise sooner, so each part of a network is stopped at its own time.

Bai et al., NeurIPS 2021, Algorithm 1, without semi-supervision. Four phases:

1. Warm-up: all labels train the whole network until T1.
2. Refine last stage: last stage and classifier are reinitialised and trained alone for T2.
3. Refine classifier: the classifier is reinitialised and trained alone for T3.
4. Confident: the images whose given label the network predicts, selected anew every epoch and weighted by class.

T1, T2 and T3 are shares of the epochs, and all phases together make up the training (the released code adds T2 and T3
to its 200 epochs). The training's schedule runs through all phases; momentum restarts in each. With `frozen_tail` the
reinitialised parts stay frozen after phases 2 and 3, as in the released code, whose optimiser owns the weights from
before. A class of which no image is confident keeps its last confident ones, where the released code loses it; at first
all images count as confident.

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

PUBLISHED = {
    "epochs": 200,
    "batch_size": 128,
    "learning_rate": 0.1,
    "weight_decay": 1e-4,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "milestones": (0.5, 0.75),
    "validation_fraction": 0.1,
}

ABOUT: About = {
    "title": "PES",
    "paper": "Bai et al.: Understanding and Improving Early Stopping for Learning with Noisy Labels (NeurIPS 2021)",
    "idea": "Later layers memorise wrong labels sooner. They are reinitialised and trained again, briefly; then only "
    "the images whose label the network predicts itself are trained on.",
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
    "training": {
        "cifar10": {**PUBLISHED, "network": "resnet18"},
        "cifar100": {**PUBLISHED, "network": "resnet34"},
    },
}


class Params(MethodParams):
    """Parameters of PES."""

    warm_up: float = Field(
        default=0.125,
        gt=0.0,
        le=1.0,
        description="T1: share of the epochs in which all labels train the whole network.",
    )
    refine_last_stage: float = Field(
        default=0.035,
        ge=0.0,
        le=0.5,
        description="T2: share of the epochs in which a reinitialised last stage and classifier train alone, if any.",
    )
    refine_classifier: float = Field(
        default=0.025,
        ge=0.0,
        le=0.5,
        description="T3: share of the epochs in which a reinitialised classifier trains alone; 0 skips this.",
    )
    refine_learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=0.1,
        description="Adam's learning rate in both; with fewer steps than in the paper it is raised in proportion.",
    )
    after_refine: Literal["train_all", "frozen_tail"] = Field(
        default="train_all",
        description="What learns from confident images. train_all: everything; frozen_tail: all but the "
        "reinitialised parts, as in the released code.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Algorithm 1."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.confident = confidence.ConfidentSamples(labels, self.network.class_count)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Those of the four phases that have epochs; with too few epochs refinements are dropped first."""
        # lengths of the phases, and what the last one trains
        p = self.params
        shares = (p.warm_up, p.refine_last_stage, p.refine_classifier)
        first, stage, classifier, rest = schedules.phase_lengths(training.epochs, shares)
        all_parts, later_parts = reinitialisation.NETWORK_PARTS, reinitialisation.LATER_PARTS
        refined = later_parts if stage else later_parts[1:] if classifier else ()
        trained = [part for part in all_parts if p.after_refine == "train_all" or part not in refined]

        schedule = reinitialisation.FreezeSchedule(
            self.network, self.make_network, training, len(self.confident.labels)
        )
        rate = p.refine_learning_rate
        step = self.cross_entropy_step
        phases = [
            Phase(first, step, schedule.sgd(0, first, all_parts), name="warm-up"),
            schedule.refinement_phase(first, stage, later_parts, rate, step),
            schedule.refinement_phase(first + stage, classifier, later_parts[1:], rate, step),
            Phase(
                rest,
                self._confident_step,
                schedule.sgd(first + stage + classifier, rest, trained),
                enter=lambda _: reinitialisation.train_only(self.network, trained),
                begin_epoch=self._select,
                passes=lambda: [Pass(self.confident.mask)],
                name="confident",
            ),
        ]
        return [phase for phase in phases if phase.epochs]

    def _select(self, context: TrainContext) -> None:
        self.confident.select(context, self.network)

    def _confident_step(self, batch: Batch) -> Tensor:
        """Cross-entropy of confident images, weighted by class."""
        logits, weights = self.predict_batch(batch), self.confident.class_weights
        return batch.label_loss(lambda labels, _: losses.weighted_cross_entropy(logits, labels, weights))
