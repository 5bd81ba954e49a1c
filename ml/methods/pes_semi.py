"""Progressive early stopping, semi-supervised: PES chooses the labels to trust, MixMatch learns the rest without them.

Bai et al., NeurIPS 2021, section 3.3. All labels train the network until T1; its classifier is renewed and trained
alone for T2; then every epoch divides the images by whether the network predicts their given label, and each step mixes
both kinds. Given labels are targets as they are, weighed by class; the others' targets are guessed and sharpened.

T1 and T2 are shares of the epochs, and all phases together make the job's (the released code gives T2 on top of its
300). An epoch has as many steps as one of all images. `frozen_tail` is what the released code does: the renewed
classifier rests ever after. A class of which nothing is confident keeps its last confident images; at first, all count.

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

MIXING = "mixing"  # the concern of λ and of the permutation
CAP = 3.0  # no class weighs more
LATER = 0.5  # share of the epochs after which images are mixed less: 150 of 300
CLASSIFIER = ("classifier",)
CIFAR_100 = {"warm_up": 35 / 300}

ABOUT: About = {
    "title": "PES (semi)",
    "paper": "Bai et al.: Understanding and Improving Early Stopping for Learning with Noisy Labels (NeurIPS 2021)",
    "idea": "Images whose given label an early stopped network predicts keep it. The others are learned without it, "
    "from the network's own sharpened guesses.",
    "relative_cost": 2.8,
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
}


class Params(MethodParams):
    """The settings of PES (semi)."""

    warm_up: float = Field(
        default=20 / 300, gt=0.0, le=1.0, description="T1: share of the epochs in which all labels train all parts."
    )
    refine_classifier: float = Field(
        default=5 / 300,
        ge=0.0,
        le=0.5,
        description="T2: share of the epochs in which a new classifier is trained alone; 0 renews none.",
    )
    refine_learning_rate: float = Field(
        default=1e-4,
        gt=0.0,
        le=0.1,
        description="Of Adam then; in fewer steps than the paper's it is raised, so that the part comes as far.",
    )
    after_refine: Literal["train_all", "frozen_tail"] = Field(
        default="train_all",
        description="What learns after that. train_all: everything; frozen_tail: all but the renewed classifier, as in "
        "the released code.",
    )
    temperature: float = Field(
        default=0.5, ge=0.05, le=1.0, description="Sharpening of the guessed targets; 1 leaves them."
    )
    alpha: float = Field(
        default=4.0, gt=0.0, le=100.0, description="Of the Beta distribution by which images are mixed at first."
    )
    alpha_later: float = Field(
        default=0.75, gt=0.0, le=100.0, description="The same from half of the epochs on: small mixes less."
    )
    unlabelled_weight: float = Field(
        default=5.0,
        ge=0.0,
        le=1000.0,
        description="Weight of the unlabelled images' loss: 5 at little noise over 10 classes, 15 at half, 50 to 100 "
        "over 100 classes.",
    )
    ramp: float = Field(
        default=16 / 300, ge=0.0, le=1.0, description="Share of the epochs over which that weight grows from 0."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """PES, then MixMatch."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.confident = confidence.ConfidentSamples(labels, self.network.class_count, CAP)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """All labels; a new classifier; MixMatch. Too few epochs for all three drop the renewal first."""
        p = self.params
        first, classifier, rest = schedules.phase_lengths(training.epochs, (p.warm_up, p.refine_classifier))
        begins = first + classifier
        rests = CLASSIFIER if classifier and p.after_refine == "frozen_tail" else ()
        learning = [part for part in reinitialisation.NETWORK_PARTS if part not in rests]

        stages = reinitialisation.FreezeSchedule(self.network, self.make, training, len(self.confident.labels))

        def mixed(batch: Batch) -> Tensor:
            ramp = schedules.linear_ramp(batch.progress * training.epochs - begins, p.ramp * training.epochs)
            alpha = p.alpha if batch.epoch < LATER * training.epochs else p.alpha_later
            return self._mixmatch(batch, alpha, p.unlabelled_weight * ramp)

        found = [
            Phase(first, self.plain, stages.sgd(0, first, reinitialisation.NETWORK_PARTS), name="warm-up"),
            stages.refinement(first, classifier, CLASSIFIER, p.refine_learning_rate, self.plain),
            Phase(
                rest,
                mixed,
                stages.sgd(begins, rest, learning),
                enter=lambda _: reinitialisation.train_only(self.network, learning),
                begin_epoch=self._select,
                passes=self._passes,
                views=("weak", "weak"),
                name="mixmatch",
            ),
        ]
        return [phase for phase in found if phase.epochs]

    def _select(self, lab: TrainContext) -> None:
        self.confident.select(lab, self.network)

    def _passes(self) -> Sequence[Pass]:
        """As many steps as all images would take: confident ones are repeated where they are the fewer."""
        trusted = self.confident.mask
        positions = pool_union.positions(trusted)
        suspicious = len(trusted) - len(positions)
        if suspicious == 0:
            return [Pass(trusted)]
        share = 0.5 if suspicious > len(positions) else suspicious / len(trusted)
        shown = pool_union.repeat_to(positions, round(len(trusted) * (1 - share)))
        return [Pass(shown, ~trusted, share)]

    def _mixmatch(self, batch: Batch, alpha: float, weight: float) -> Tensor:
        """One step; `weight` is λ_u. Labels are ranked by the guesses: no labelled image is shown unmixed."""
        given = losses.one_hot(batch.labels, self.network.class_count)
        targets = given.repeat(len(batch.views), 1)
        images, index = torch.cat(batch.views), [batch.index] * len(batch.views)
        if batch.unlabelled is not None:
            guessed = self._guessed(batch.unlabelled)
            targets = torch.cat([targets, guessed.repeat(len(batch.unlabelled.views), 1)])
            images = torch.cat([images, *batch.unlabelled.views])
            index += [batch.unlabelled.index] * len(batch.unlabelled.views)
        generator = batch.generator(MIXING)
        share = mixup.fold_lambda(mixup.draw_lambda(alpha, generator))
        partner = mixup.draw_partners(mixup.row_ids(index), generator)
        logits = self.network(mixup.mix(images, share, partner))
        labelled = len(batch.views) * len(batch.labels)
        wanted = mixup.mix(targets, share, partner)
        return mixmatch.loss(logits, wanted, labelled, weight, self.confident.class_weights)

    @torch.no_grad()
    def _guessed(self, unlabelled: Unlabelled) -> Tensor:
        """Targets (B', C): the network's sharpened mean over views, by the batch's statistics, view by view."""
        guesses = [self.network(view) for view in unlabelled.views]
        unlabelled.record_logits(guesses[0])
        return mixmatch.sharpen(mixmatch.average_probabilities(guesses), self.params.temperature)
