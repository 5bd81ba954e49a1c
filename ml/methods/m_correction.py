"""M-correction: a beta mixture estimates how probably each label is wrong, and by as much a prediction replaces it.

Arazo et al., ICML 2019. Up to three phases:

1. MixUp with nearly equal shares, until the learning rate has dropped.
2. Guided (variant `soft` only): images are mixed by their clean probability (Eq. 11), and given labels by λ as in
   MixUp, which the released code does and the paper does not describe.
3. Bootstrapping: a target is (1 - B) · label + B · prediction, where B is the probability of a wrong label by a mixture
   of two beta densities that is fitted to all losses before each epoch. `hard` (M-DYR-H, Eq. 10) takes the predicted
   class and mixes at random. `soft` (MD-DYR-SH) mixes images by their clean probability and takes the predicted
   probabilities, at a temperature that falls until they are hard.

All durations are shares of the epochs. The released code also fits the mixture during MixUp and does not use it; that
is left out.

Published: preact_resnet18, 300 epochs, batches of 128, learning rate 0.1 times 0.1 at 100 and 250, weight decay 1e-4,
nothing held out. The better variant differs by data set and noise, and the presets follow it.

Shapes: `B` batch, `C` classes, targets and logits (B, C), noisy and clean probability (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import beta_mixture, losses, mixup, schedules, single_network
from ml.method import Batch, MethodParams, Network, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

MIN_TEMPERATURE = 1e-3  # where that of soft predictions ends

ABOUT: About = {
    "title": "M-correction",
    "paper": "Arazo et al.: Unsupervised Label Noise Modeling and Loss Correction (ICML 2019)",
    "idea": "Two beta densities fitted to the losses estimate how probably each label is wrong. By as much the "
    "network's own prediction replaces it, while images are mixed.",
    "relative_cost": 1.65,
    "mixes": True,
    "needs": [],
    "presets": {
        "cifar10": {"variant": "hard"},
        "cifar100 symmetric 20 % or 50 %": {"variant": "soft"},
        "cifar100 symmetric 80 %": {"variant": "hard"},
    },
    "training": {
        "*": {
            "network": "preact_resnet18",
            "epochs": 300,
            "batch_size": 128,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (100 / 300, 250 / 300),
            "validation_fraction": 0.0,
        }
    },
}


class Params(MethodParams):
    """Parameters of M-correction."""

    variant: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: the predicted class, random mixing; soft: the predicted probabilities, mixing by clean "
        "probability, which is better at moderate noise over many classes.",
    )
    warm_up: float = Field(
        default=0.35, gt=0.0, le=1.0, description="Share of the epochs of plain MixUp: until the learning rate drops."
    )
    alpha: float = Field(
        default=32.0,
        gt=0.0,
        le=100.0,
        description="Parameter of the Beta distribution of the mixing ratio; large values mix half and half.",
    )
    guided: float = Field(
        default=5 / 300,
        ge=0.0,
        le=1.0,
        description="soft: share of the epochs that mix images by clean probability, before labels are replaced.",
    )
    cooling: float = Field(
        default=89 / 300, ge=0.0, le=1.0, description="soft: share of the epochs over which the temperature falls."
    )
    prior_weight: float = Field(
        default=1.0, ge=0.0, le=100.0, description="η: weight of predicting all classes equally often."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """MixUp, then bootstrapping."""

    labels: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.mixture = beta_mixture.BetaMixture()
        self.register_buffer("labels", labels, persistent=False)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """MixUp, guided, bootstrapping, those that have epochs, with one optimizer and one schedule."""
        p = self.params
        guided = p.guided if p.variant == "soft" else 0.0
        first, second, rest = schedules.phase_lengths(training.epochs, (p.warm_up, guided))
        cooling_epochs = max(1, round(p.cooling * training.epochs) - 1)

        def soft_step(batch: Batch) -> Tensor:
            cooled = batch.of_epoch(lambda epoch: min(1.0, (epoch - first - second) / cooling_epochs))
            return self._soft_step(batch, 1.0 - (1.0 - MIN_TEMPERATURE) * cooled)

        mixup_step = partial(self.mixup_step, alpha=p.alpha)
        last_step = self._hard_step if p.variant == "hard" else soft_step
        phases = [
            Phase(first, mixup_step, lambda: self.optimizers(training), name="mixup"),
            Phase(second, self._guided_step, None, begin_epoch=self._fit_mixture, name="guided"),
            Phase(rest, last_step, None, begin_epoch=self._fit_mixture, name="bootstrapping"),
        ]
        return [phase for phase in phases if phase.epochs]

    def _fit_mixture(self, context: TrainContext) -> None:
        """Fit the mixture to all losses on augmented views, in eval mode."""
        self.mixture.fit(losses.cross_entropies(context.score(self.network, views=1), self.labels))

    # --- steps ---

    def _hard_step(self, batch: Batch) -> Tensor:
        """Dynamic hard bootstrapping with MixUp (Eq. 10)."""
        share, partner = self._draw_mixing(batch)
        predicted = self._predict(batch).argmax(dim=1)
        targets = self._bootstrap(batch, predicted, self._noisy_probability(batch)[0])
        return self._loss(mixup.mix(batch.images, share, partner), mixup.mix(targets, share, partner))

    def _guided_step(self, batch: Batch) -> Tensor:
        """Dynamic MixUp: images are mixed by their clean probability, given labels by λ, without a penalty."""
        share, partner = self._draw_mixing(batch)
        noisy_probability, logits = self._noisy_probability(batch)
        batch.record_logits(logits)
        label_targets = losses.one_hot(batch.labels, self.network.class_count)
        mixed = self.network(self._mix_by_clean_probability(batch, noisy_probability, partner))
        return losses.soft_cross_entropy(mixed, mixup.mix(label_targets, share, partner))

    def _soft_step(self, batch: Batch, temperature: float) -> Tensor:
        """Dynamic MixUp of images with soft bootstrapping: targets are mixed half and half."""
        share, partner = self._draw_mixing(batch)
        predicted = (self._predict(batch) / temperature).softmax(dim=1)
        noisy_probability, _ = self._noisy_probability(batch)
        targets = self._bootstrap(batch, predicted, noisy_probability)
        images = self._mix_by_clean_probability(batch, noisy_probability, partner)
        return self._loss(images, mixup.mix(targets, torch.full_like(share, 0.5), partner))

    # --- their parts ---

    def _draw_mixing(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """λ, one for the batch, and each image's partner."""
        return mixup.draw_mixing(self.params.alpha, batch.index, batch.generator(mixup.MIXING))

    @torch.no_grad()
    def _predict(self, batch: Batch) -> Tensor:
        """Logits f32 (B, C) in training mode, which also rank the given labels."""
        logits: Tensor = self.network(batch.images)
        batch.record_logits(logits)
        return logits.float()

    @torch.no_grad()
    def _noisy_probability(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """P(the label is wrong) (B,) by the loss in eval mode, and the logits (B, C) of that loss."""
        self.network.eval()
        logits = self.network(batch.images)
        self.network.train()
        return self.mixture.noisy_probability(losses.cross_entropies(logits, batch.labels)), logits

    def _mix_by_clean_probability(self, batch: Batch, noisy_probability: Tensor, partner: Tensor) -> Tensor:
        """Eq. 11: each image (B, ...) and its partner, in proportion to their clean probabilities."""
        clean_probability = 1.0 - noisy_probability
        image_share = clean_probability / (clean_probability + clean_probability[partner])
        return mixup.mix(batch.images, image_share.view(-1, *[1] * (batch.images.dim() - 1)), partner)

    def _bootstrap(self, batch: Batch, predicted: Tensor, noisy_probability: Tensor) -> Tensor:
        """(1 - B) · y + B · ẑ, (B, C), where ẑ is `predicted`, classes (B,) or probabilities (B, C)."""
        classes = self.network.class_count
        predicted_targets = losses.one_hot(predicted, classes) if predicted.dim() == 1 else predicted
        return torch.lerp(losses.one_hot(batch.labels, classes), predicted_targets, noisy_probability[:, None])

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy and the penalty on the predicted class frequencies."""
        logits = self.network(images)
        return losses.soft_cross_entropy(logits, targets) + self.params.prior_weight * losses.prior_kl(logits)
