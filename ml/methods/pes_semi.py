"""PES, semi-supervised: PES selects the labels to keep, MixMatch learns the other images without labels.

Bai et al., NeurIPS 2021, section 3.3. Three phases:

1. Warm-up: all labels train the whole network until T1.
2. Refine classifier: the classifier is reinitialised and trained alone for T2.
3. MixMatch: every epoch selects the images whose given label the network predicts, and each step mixes both kinds.
   Given labels are targets as they are, weighted by class; the other images' targets are guessed and sharpened.

T1 and T2 are shares of the epochs, and all phases together make up the training (the released code adds T2 to its 300
epochs). An epoch has as many steps as one over all images. With `frozen_tail` the reinitialised classifier stays frozen
as in the released code. A class of which no image is confident keeps its last confident ones; at first all images count
as confident.

Published: preact_resnet18 (resnet34 on human labels), 300 epochs, batches of 128, SGD 0.02 with weight decay 5e-4,
cosine down to a hundredth, nothing held out. The weights of the unlabelled loss come from the released code and, for
symmetric noise, from those who ran it again.

Shapes: `B` labelled and `B'` unlabelled images of a step, `N` training images, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import confidence, losses, mixmatch, mixup, pool_union, reinitialisation, schedules, single_network
from ml.method import Batch, MethodParams, Network, Pass, Phase, TrainContext, TrainHyperparameters, Unlabelled
from ml.methods import About

MAX_CLASS_WEIGHT = 3.0
LATER = 0.5  # share of the epochs after which `alpha_later` holds: 150 of 300
CLASSIFIER = ("classifier",)
CIFAR_100 = {"warm_up": 35 / 300}

PUBLISHED = {
    "epochs": 300,
    "batch_size": 128,
    "learning_rate": 0.02,
    "weight_decay": 5e-4,
    "schedule": "cosine",
    "schedule_unit": "epoch",
    "floor": 0.01,
    "validation_fraction": 0.0,
}

ABOUT: About = {
    "title": "PES (semi)",
    "paper": "Bai et al.: Understanding and Improving Early Stopping for Learning with Noisy Labels (NeurIPS 2021)",
    "idea": "Images whose given label an early stopped network predicts keep it. The others are learned without it, "
    "from the network's own sharpened predictions.",
    "relative_cost": 2.8,
    "mixes": True,
    "needs": [],
    "presets": {
        "cifar10 human": {"unlabelled_weight": 5.0},
        "cifar10 symmetric 20 %": {"unlabelled_weight": 5.0},
        "cifar10 symmetric 50 %": {"unlabelled_weight": 15.0},
        "cifar10 symmetric 80 %": {"unlabelled_weight": 25.0},
        "cifar10 pairflip 45 %": {"unlabelled_weight": 5.0},
        "cifar10 instance 20 %": {"unlabelled_weight": 5.0},
        "cifar10 instance 40 %": {"unlabelled_weight": 15.0},
        "cifar100 human": {**CIFAR_100, "unlabelled_weight": 75.0},
        "cifar100 symmetric 20 %": {**CIFAR_100, "unlabelled_weight": 50.0},
        "cifar100 symmetric 50 %": {**CIFAR_100, "unlabelled_weight": 75.0},
        "cifar100 symmetric 80 %": {**CIFAR_100, "unlabelled_weight": 100.0},
        "cifar100 pairflip 45 %": {**CIFAR_100, "unlabelled_weight": 50.0},
        "cifar100 instance": {**CIFAR_100, "unlabelled_weight": 50.0},
    },
    "training": {
        "* human": {**PUBLISHED, "network": "resnet34"},
        "*": {**PUBLISHED, "network": "preact_resnet18"},
    },
}


class Params(MethodParams):
    """Parameters of PES (semi)."""

    warm_up: float = Field(
        default=20 / 300,
        gt=0.0,
        le=1.0,
        description="T1: share of the epochs in which all labels train the whole network.",
    )
    refine_classifier: float = Field(
        default=5 / 300,
        ge=0.0,
        le=0.5,
        description="T2: share of the epochs in which a reinitialised classifier trains alone; 0 skips this.",
    )
    refine_learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=0.1,
        description="Adam's learning rate then; with fewer steps than in the paper it is raised in proportion.",
    )
    after_refine: Literal["train_all", "frozen_tail"] = Field(
        default="train_all",
        description="What learns after that. train_all: everything; frozen_tail: all but the reinitialised "
        "classifier, as in the released code.",
    )
    temperature: float = Field(
        default=0.5, ge=0.05, le=1.0, description="Sharpening of the guessed targets; 1 does not sharpen."
    )
    alpha: float = Field(
        default=4.0, gt=0.0, le=100.0, description="Parameter of the Beta distribution of the mixing ratio at first."
    )
    alpha_later: float = Field(
        default=0.75, gt=0.0, le=100.0, description="The same from half of the epochs on: small values mix less."
    )
    unlabelled_weight: float = Field(
        default=5.0,
        ge=0.0,
        le=1000.0,
        description="Weight of the unlabelled images' loss: 5 at little noise over 10 classes, 15 at half, 50 to 100 "
        "over 100 classes.",
    )
    ramp: float = Field(
        default=16 / 300,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which the weight of the unlabelled images' loss grows from 0.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """PES, then MixMatch."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.confident = confidence.ConfidentSamples(labels, self.network.class_count, MAX_CLASS_WEIGHT)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Those of the three phases that have epochs; with too few epochs the refinement is dropped first."""
        # lengths of the phases, and what the last one trains
        p = self.params
        first, classifier, rest = schedules.phase_lengths(training.epochs, (p.warm_up, p.refine_classifier))
        begin = first + classifier
        all_parts = reinitialisation.NETWORK_PARTS
        frozen = CLASSIFIER if classifier and p.after_refine == "frozen_tail" else ()
        trained = [part for part in all_parts if part not in frozen]

        # phase 3: λ_u grows from its start, α changes at half of the training
        def mixmatch_loss(batch: Batch) -> Tensor:
            ramp = schedules.linear_ramp(batch.progress * training.epochs - begin, p.ramp * training.epochs)
            alpha = batch.of_epoch(lambda epoch: p.alpha if epoch < LATER * training.epochs else p.alpha_later)
            return self._mixmatch_step(batch, alpha, p.unlabelled_weight * ramp)

        schedule = reinitialisation.FreezeSchedule(
            self.network, self.make_network, training, len(self.confident.labels)
        )
        step = self.cross_entropy_step
        phases = [
            Phase(first, step, schedule.sgd(0, first, all_parts), name="warm-up"),
            schedule.refinement_phase(first, classifier, CLASSIFIER, p.refine_learning_rate, step),
            Phase(
                rest,
                mixmatch_loss,
                schedule.sgd(begin, rest, trained),
                enter=lambda _: reinitialisation.train_only(self.network, trained),
                begin_epoch=self._select,
                passes=self._passes,
                views=("weak", "weak"),
                name="mixmatch",
            ),
        ]
        return [phase for phase in phases if phase.epochs]

    def _select(self, context: TrainContext) -> None:
        self.confident.select(context, self.network)

    def _passes(self) -> Sequence[Pass]:
        """As many steps as all images would take: confident images are repeated where they are the minority."""
        confident = self.confident.mask
        positions = pool_union.pool_positions(confident)
        suspicious = len(confident) - len(positions)
        if suspicious == 0:
            return [Pass(confident)]
        share = 0.5 if suspicious > len(positions) else suspicious / len(confident)
        labelled = pool_union.repeat_to(positions, round(len(confident) * (1 - share)))
        return [Pass(labelled, ~confident, share)]

    def _mixmatch_step(self, batch: Batch, alpha: float, unlabelled_weight: float) -> Tensor:
        """The loss of one MixMatch step; `unlabelled_weight` is λ_u.

        Labels of unlabelled images are ranked by the guesses; labelled images appear in mixtures only.
        """
        # targets of every view: given labels, then guesses
        label_targets = losses.one_hot(batch.labels, self.network.class_count)
        targets = label_targets.repeat(len(batch.views), 1)
        images, index = torch.cat(batch.views), [batch.index] * len(batch.views)
        if batch.unlabelled is not None:
            guessed = self._guess_targets(batch.unlabelled)
            targets = torch.cat([targets, guessed.repeat(len(batch.unlabelled.views), 1)])
            images = torch.cat([images, *batch.unlabelled.views])
            index += [batch.unlabelled.index] * len(batch.unlabelled.views)

        # mix all rows with each other
        generator = batch.generator(mixup.MIXING)
        share, partner = mixup.draw_mixing(alpha, mixup.row_ids(index), generator, folded=True)
        logits = self.network(mixup.mix(images, share, partner))
        mixed_targets = mixup.mix(targets, share, partner)

        labelled = len(batch.views) * len(batch.labels)
        return mixmatch.loss(logits, mixed_targets, labelled, unlabelled_weight, self.confident.class_weights)

    @torch.no_grad()
    def _guess_targets(self, unlabelled: Unlabelled) -> Tensor:
        """Targets (B', C): the network's sharpened mean probabilities over views, in training mode, view by view."""
        logits = [self.network(view) for view in unlabelled.views]
        unlabelled.record_logits(logits[0])
        return mixmatch.sharpen(mixmatch.average_probabilities(logits), self.params.temperature)
