"""ELR+: early-learning regularisation with two networks, each held to predictions of the other's averaged weights.

Liu et al., NeurIPS 2020, section 4.3 and appendix, after the released code. In each epoch the networks train one after
the other. A network learns from mixed images (MixUp); its targets are running averages of what the other network's
weight average (EMA, whose batch normalisation has statistics of its own) predicts for the plain images. In the released
code each network draws its own noise and split; here both see the same labels. Steps given there are shares of the
training here. Labels are ranked by the averaged network, which alone sees plain images.

Published: two PreAct ResNet-18, SGD 0.02 with weight decay 5e-4, batches of 128, a tenth held out; times 0.1 at epoch
150 of 200 (CIFAR-10) or 200 of 250 (CIFAR-100). Clothing1M: ResNet-50, 0.002 and 1e-3, batches of 64, times 0.1 at 7 of
15.

Shapes: `N` samples, `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ml import method
from ml.blocks import balanced_subset, early_learning, ema, losses, mixup, prediction_history, schedules, two_networks
from ml.method import ENSEMBLE, Batch, Network, Optimizers, Pass, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

SUBSET = "subset"  # the concern by whose generator the samples of an epoch are drawn
RAMP_STEPS = 40_000
CIFAR_10_RAMP = RAMP_STEPS / (200 * 352)  # 200 epochs of 45,000 images in batches of 128
CIFAR_100_RAMP = RAMP_STEPS / (250 * 352)
CIFAR_10 = {"target_kept": 0.7, "weight": 3.0}

PUBLISHED = {
    "network": "preact_resnet18",
    "batch_size": 128,
    "learning_rate": 0.02,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "validation_fraction": 0.1,
}

ABOUT: About = {
    "title": "ELR+",
    "paper": "Liu et al.: Early-Learning Regularization Prevents Memorization of Noisy Labels (NeurIPS 2020)",
    "idea": "Every prediction is pulled towards the average of earlier ones, made by the averaged weights of a second "
    "network, so that no network confirms its own mistakes. Both learn from mixed images.",
    "relative_cost": 2.67,
    "mixes": True,
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
    "training": {
        "cifar10 *": {**PUBLISHED, "epochs": 200, "milestones": (0.75,)},
        "cifar100": {**PUBLISHED, "epochs": 250, "milestones": (0.8,)},
    },
}


class Params(early_learning.EarlyLearningParams):
    """Parameters of ELR+."""

    weight_ramp: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which the weight of the regularisation grows: 0.45 for 100 classes.",
    )
    refined: bool = Field(
        default=False,
        description="Whether given labels count only as far as the averaged predictions agree: for 100 classes.",
    )
    alpha: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Parameter of the Beta distribution of the mixing ratio; large values mix half and half.",
    )
    averaging: Literal["ramp", "equal"] = Field(
        default="ramp",
        description="ramp: the momentum of the averaged weights grows from about 0; equal: all steps have the same "
        "weight until the momentum reaches averaging_kept.",
    )
    averaging_kept: float = Field(
        default=0.997, ge=0.0, lt=1.0, description="Final momentum of the averaged weights, per step."
    )
    averaging_ramp: float = Field(
        default=CIFAR_10_RAMP, ge=0.0, le=1.0, description="Share of the epochs over which the momentum grows."
    )
    epoch_images: int = Field(
        default=0,
        ge=0,
        le=10_000_000,
        description="Images of an epoch for each network, equally many of every class; 0 takes all. For classes of "
        "very different size.",
    )


class Learner(nn.Module):
    """A network, its weight average, and the running average of predictions that it is held to."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network and its average; arguments as of `ml.method.Method`."""
        super().__init__()
        self.network = network()
        self.average = ema.WeightEma(network())
        self.memory = prediction_history.PredictionEma(len(labels), self.network.class_count, params.target_kept)
        self.subset = balanced_subset.BalancedSubset(labels, params.epoch_images) if params.epoch_images else None


class Method(method.Method):
    """Two learners, each taught by the other's weight average."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build both learners; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params
        self.one, self.two = (Learner(params, labels, network) for _ in range(2))

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs, with a pass for each network."""
        learners = (self.one, self.two)
        all_images = torch.arange(len(self.one.memory.values))

        def optimizers() -> Optimizers:
            members = tuple(training.sgd(learner.network.parameters()) for learner in learners)
            return Optimizers(members, training.factor)

        def passes() -> Sequence[Pass]:
            return [Pass(all_images if one.subset is None else one.subset.positions) for one in learners]

        def draw_subsets(context: TrainContext) -> None:
            for learner in learners:
                if learner.subset is not None:
                    learner.subset.draw(context.generator(SUBSET))

        begin_epoch = draw_subsets if self.params.epoch_images else method.no_preparation
        return [
            Phase(
                training.epochs,
                self._loss,
                optimizers,
                after_step=self._update_average,
                begin_epoch=begin_epoch,
                passes=passes,
            )
        ]

    def _loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of mixed images with mixed labels, and regularisation towards mixed targets (Eq. 6)."""
        # targets: the teacher's predictions for plain images enter the running average
        learner, teacher = (self.one, self.two) if batch.pass_index == 0 else (self.two, self.one)
        teacher_logits = teacher.average(batch.images)
        batch.record_logits(teacher_logits)
        averages = learner.memory.update(batch.index, teacher_logits.float().softmax(dim=1))

        # MixUp of images, labels and targets
        generator = batch.generator(mixup.MIXING)
        share, partner = mixup.draw_mixing(self.params.alpha, batch.index, generator, folded=True)
        logits = learner.network(mixup.mix(batch.images, share, partner))
        label_targets = mixup.mix(losses.one_hot(batch.labels, logits.shape[1]), share, partner)
        targets = mixup.mix(averages, share, partner)

        # the loss
        if self.params.refined:
            label_targets = functional.normalize(label_targets * targets, p=1.0, dim=1)
        regularization = early_learning.regularization(early_learning.clipped_softmax(logits), targets)
        weight = self.params.weight
        if self.params.weight_ramp > 0.0:
            weight *= schedules.gaussian_ramp(batch.progress, self.params.weight_ramp)
        return losses.soft_cross_entropy(logits, label_targets) + weight * regularization

    def _update_average(self, batch: Batch) -> None:
        """Move the weight average of the network that has just taken a step."""
        learner = self.one if batch.pass_index == 0 else self.two
        maximum = self.params.averaging_kept
        if self.params.averaging == "equal":
            learner.average.update(learner.network, learner.average.equal_momentum(maximum))
        else:
            ramp = schedules.gaussian_ramp(batch.progress, self.params.averaging_ramp)
            learner.average.update(learner.network, maximum * ramp)

    def logits(self, images: Tensor) -> Tensor:
        """Mean of both networks' logits (B, C); their weight averages only teach."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """The ensemble's and each network's own logits, `g1` and `g2`, (B, C) each."""
        return two_networks.mean_logit_heads(*(one.network(images).float() for one in (self.one, self.two)))
