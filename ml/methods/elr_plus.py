"""ELR+: early-learning regularisation where two networks remember what the other's averaged weights answer to plain
images, while they learn from mixed ones.

Liu et al., NeurIPS 2020, section 4.3 and appendix, after the released code: the networks train one after the other in
each epoch, each against the other's current average, whose batches have statistics of their own. There each network
draws its own noise and split; here both see the same labels. Steps given there are shares of the training here.

Published: two PreAct ResNet-18, SGD 0.02 with weight decay 5e-4, batches of 128, a tenth held out; times 0.1 at epoch
150 of 200 (CIFAR-10) or 200 of 250 (CIFAR-100). Clothing1M: ResNet-50, 0.002 and 1e-3, batches of 64, times 0.1 at 7 of
15. Labels are ranked by the averaged network, which alone sees plain images.

Shapes: `B` batch, `N` samples, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ml import method
from ml.blocks import balanced_subset, early_learning, ema, losses, mixup, prediction_history, schedules
from ml.method import ENSEMBLE, Batch, Network, Optimizers, Pass, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

MIXING, SUBSET = "mixing", "subset"  # concerns: λ and the permutation; which samples an epoch shows
RAMP_STEPS = 40_000
CIFAR_10_RAMP = RAMP_STEPS / (200 * 352)  # 200 epochs of 45,000 images in batches of 128
CIFAR_100_RAMP = RAMP_STEPS / (250 * 352)
CIFAR_10 = {"target_kept": 0.7, "weight": 3.0}

ABOUT: About = {
    "title": "ELR+",
    "paper": "Liu et al.: Early-Learning Regularization Prevents Memorization of Noisy Labels (NeurIPS 2020)",
    "idea": "Every answer is pulled towards the average of earlier ones, given by the averaged weights of a second "
    "network, so that no network confirms its own mistakes. Both learn from mixed images.",
    "relative_cost": 2.67,
    "needs": [],
    "presets": {
        "cifar10 symmetric": {**CIFAR_10},
        "cifar10 asymmetric": {"target_kept": 0.9, "weight": 1.0},
        "cifar100": {
            "target_kept": 0.9,
            "weight": 7.0,
            "weight_ramp": CIFAR_100_RAMP,
            "refined": True,
            "averaging_ramp": CIFAR_100_RAMP,
        },
        "clothing1m": {
            **CIFAR_10,
            "averaging": "equal",
            "averaging_kept": 0.9999,
            "epoch_images": 3000 * 64,
        },
    },
}


class Params(early_learning.EarlyLearningParams):
    """Settings of ELR+."""

    weight_ramp: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which that weight grows to its full value: 0.45 for 100 classes.",
    )
    refined: bool = Field(
        default=False,
        description="Whether given labels count only as far as the remembered answers agree: for 100 classes.",
    )
    alpha: float = Field(
        default=1.0, gt=0.0, le=100.0, description="Of the Beta distribution by which images are mixed; large is half."
    )
    averaging: Literal["ramp", "equal"] = Field(
        default="ramp",
        description="ramp: the averaged weights first follow the network closely, then ever more slowly; equal: all "
        "steps count alike until so many are averaged as averaging_kept allows.",
    )
    averaging_kept: float = Field(
        default=0.997, ge=0.0, lt=1.0, description="Share of the averaged weights that stays at each step, in the end."
    )
    averaging_ramp: float = Field(
        default=CIFAR_10_RAMP, ge=0.0, le=1.0, description="Share of the epochs until averaging is that slow."
    )
    epoch_images: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Images an epoch shows each network, as many of every class; 0 shows all. For classes of very "
        "different size.",
    )


class Learner(nn.Module):
    """A network, its average, and what it remembers of every sample."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__()
        self.network = network()
        self.average = ema.WeightEma(network())
        self.memory = prediction_history.PredictionEma(len(labels), self.network.class_count, params.target_kept)
        self.subset = balanced_subset.BalancedSubset(labels, params.epoch_images) if params.epoch_images else None


class Method(method.Method):
    """Two learners, each taught by the other's average."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.params = params
        self.one, self.two = (Learner(params, labels, network) for _ in range(2))

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs, a pass for each network."""
        learners = (self.one, self.two)
        every = torch.arange(len(self.one.memory.values))

        def optimizers() -> Optimizers:
            members = tuple(training.sgd(learner.network.parameters()) for learner in learners)
            return Optimizers(members, training.factor)

        def passes() -> Sequence[Pass]:
            return [Pass(every if each.subset is None else each.subset.positions) for each in learners]

        def draw(lab: TrainContext) -> None:
            for learner in learners:
                if learner.subset is not None:
                    learner.subset.draw(lab.generator(SUBSET))

        begin_epoch = draw if self.params.epoch_images else method.no_preparation
        return [
            Phase(
                training.epochs,
                self._loss,
                optimizers,
                after_step=self._average,
                begin_epoch=begin_epoch,
                passes=passes,
            )
        ]

    def _loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of mixed images with mixed labels, held to mixed remembered answers."""
        learner, teacher = (self.one, self.two) if batch.pass_index == 0 else (self.two, self.one)
        answers = teacher.average(batch.images)
        batch.record_logits(answers)
        remembered = learner.memory.update(batch.index, answers.float().softmax(dim=1))

        generator = batch.generator(MIXING)
        share = mixup.fold_lambda(mixup.draw_lambda(self.params.alpha, generator))
        partner = mixup.draw_partners(batch.index, generator)
        logits = learner.network(mixup.mix(batch.images, share, partner))
        given = mixup.mix(losses.one_hot(batch.labels, logits.shape[1]), share, partner)
        targets = mixup.mix(remembered, share, partner)
        if self.params.refined:
            given = functional.normalize(given * targets, p=1.0, dim=1)
        held = early_learning.regularization(early_learning.clipped_softmax(logits), targets)
        weight = self.params.weight
        if self.params.weight_ramp > 0.0:
            weight *= schedules.gaussian_ramp(batch.progress, self.params.weight_ramp)
        return losses.soft_cross_entropy(logits, given) + weight * held

    def _average(self, batch: Batch) -> None:
        """The network that has just taken a step moves its average."""
        learner = self.one if batch.pass_index == 0 else self.two
        kept = self.params.averaging_kept
        if self.params.averaging == "equal":
            learner.average.update(learner.network, learner.average.equally(kept))
        else:
            ramp = schedules.gaussian_ramp(batch.progress, self.params.averaging_ramp)
            learner.average.update(learner.network, kept * ramp)

    def logits(self, images: Tensor) -> Tensor:
        """The mean of both networks' logits; their averages only teach."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """`answer`, and each network's own logits, `g1` and `g2`."""
        one, two = (learner.network(images).float() for learner in (self.one, self.two))
        return {ENSEMBLE: 0.5 * (one + two), "g1": one, "g2": two}
