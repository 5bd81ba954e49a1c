"""M-correction: a beta mixture says how probably each label is wrong, and by as much the network's own answer counts.

Arazo et al., ICML 2019. MixUp with nearly equal shares until the learning rate has dropped; then every epoch fits a
mixture of two beta densities to all losses, and targets are bootstrapped: what a label loses in trust, the network's
answer gains. `hard` (M-DYR-H) takes the answered class and mixes at random; `soft` (MD-DYR-SH) mixes images by their
trust and takes the answer's probabilities, at a temperature that falls to a hard choice.

All durations are shares of the epochs. The released code also fits the mixture during MixUp and throws it away; ours
does not.

Published: preact_resnet18, 300 epochs, batches of 128, learning rate 0.1 times 0.1 at 100 and 250, weight decay 1e-4,
nothing held out. The better variant differs by setting, and the presets follow it.

Shapes: `B` batch, `C` classes, targets and logits (B, C), trust and doubt (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import beta_mixture, losses, mixup, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

MIXING = "mixing"  # the concern of λ and of the permutation
COLDEST = 1e-3  # where the temperature of soft answers ends

ABOUT: About = {
    "title": "M-correction",
    "paper": "Arazo et al.: Unsupervised Label Noise Modeling and Loss Correction (ICML 2019)",
    "idea": "Two beta densities fitted to the losses say how probably each label is wrong. By as much the network's "
    "own answer replaces it, while images are mixed.",
    "relative_cost": 1.65,
    "needs": [],
    "presets": {
        "cifar10": {"variant": "hard"},
        "cifar100 symmetric 20 % or 50 %": {"variant": "soft"},
        "cifar100 symmetric 80 %": {"variant": "hard"},
    },
}


class Params(MethodParams):
    """The settings of M-correction."""

    variant: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: the answered class, random mixing; soft: the answer's probabilities, mixing by trust, which "
        "is the better at moderate noise over many classes.",
    )
    warm_up: float = Field(
        default=0.35, gt=0.0, le=1.0, description="Share of the epochs of plain MixUp: until the learning rate drops."
    )
    alpha: float = Field(
        default=32.0, gt=0.0, le=100.0, description="Of the Beta distribution by which images are mixed; large is half."
    )
    guided: float = Field(
        default=5 / 300, ge=0.0, le=1.0, description="soft: share of the epochs that mix by trust with hard answers."
    )
    cooling: float = Field(
        default=89 / 300, ge=0.0, le=1.0, description="soft: share of the epochs over which the temperature falls."
    )
    prior_weight: float = Field(
        default=1.0, ge=0.0, le=100.0, description="η: how much all classes should be answered equally often."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """MixUp, then bootstrapping."""

    labels: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.mixture = beta_mixture.BetaMixture()
        self.register_buffer("labels", labels, persistent=False)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One optimizer and one schedule for all."""
        p = self.params
        guided = p.guided if p.variant == "soft" else 0.0
        first, second, rest = schedules.phase_lengths(training.epochs, (p.warm_up, guided))
        cold_after = max(1, round(p.cooling * training.epochs) - 1)

        def optimizers() -> Optimizers:
            return Optimizers((training.sgd(self.network.parameters()),), training.factor)

        def soft(batch: Batch) -> Tensor:
            cooled = min(1.0, (batch.epoch - first - second) / cold_after)
            return self._guided(batch, temperature=1.0 - (1.0 - COLDEST) * cooled)

        last = self._hard if p.variant == "hard" else soft
        found = [
            Phase(first, self._mixed, optimizers, name="mixup"),
            Phase(second, self._guided, None, begin_epoch=self._fit, name="guided"),
            Phase(rest, last, None, begin_epoch=self._fit, name="bootstrapping"),
        ]
        return [phase for phase in found if phase.epochs]

    def _fit(self, lab: TrainContext) -> None:
        """The mixture of all losses on augmented views, in eval mode."""
        self.mixture.fit(losses.cross_entropies(lab.score(self.network, views=1), self.labels))

    def _mixed(self, batch: Batch) -> Tensor:
        """MixUp on given labels; they are ranked by the mixture nearest to each image."""
        share, partner = self._drawn(batch)
        logits = self.network(mixup.mix(batch.images, share, partner))
        batch.record_logits(logits[mixup.dominant_rows(share, partner)])
        given = losses.one_hot(batch.labels, self.network.class_count)
        return losses.soft_cross_entropy(logits, mixup.mix(given, share, partner))

    def _hard(self, batch: Batch) -> Tensor:
        """Dynamic hard bootstrapping with MixUp (Eq. 10)."""
        share, partner = self._drawn(batch)
        answers, doubt = self._asked(batch)
        targets = self._bootstrapped(batch, answers.argmax(dim=1), doubt)
        return self._loss(mixup.mix(batch.images, share, partner), mixup.mix(targets, share, partner))

    def _guided(self, batch: Batch, temperature: float | None = None) -> Tensor:
        """Images are mixed by their trust (Eq. 11). With a temperature, answers are soft and targets mixed half and
        half; without one, answers are hard and targets mixed as images are in MixUp."""
        share, partner = self._drawn(batch)
        answers, doubt = self._asked(batch)
        trust = 1.0 - doubt
        by_trust = (trust / (trust + trust[partner]))[:, None, None, None]
        images = mixup.mix(batch.images, by_trust, partner)
        if temperature is None:
            targets = self._bootstrapped(batch, answers.argmax(dim=1), doubt)
        else:
            targets = self._bootstrapped(batch, (answers / temperature).softmax(dim=1), doubt)
            share = torch.full_like(share, 0.5)
        return self._loss(images, mixup.mix(targets, share, partner))

    def _drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """λ, one for the batch, and each image's partner."""
        generator = batch.generator(MIXING)
        return mixup.draw_lambda(self.params.alpha, generator), mixup.draw_partners(batch.index, generator)

    @torch.no_grad()
    def _asked(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits f32 (B, C) as the network trains, and the probability of each label being wrong, as it is tested."""
        answers = self.network(batch.images)
        batch.record_logits(answers)
        self.network.eval()
        tested = self.network(batch.images)
        self.network.train()
        return answers.float(), self.mixture.wrong(losses.cross_entropies(tested, batch.labels))

    def _bootstrapped(self, batch: Batch, answers: Tensor, doubt: Tensor) -> Tensor:
        """(1 - B) · y + B · ẑ, answers as classes (B,) or probabilities (B, C)."""
        classes = self.network.class_count
        own = losses.one_hot(answers, classes) if answers.dim() == 1 else answers
        return torch.lerp(losses.one_hot(batch.labels, classes), own, doubt[:, None])

    def _loss(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self.network(images)
        return losses.soft_cross_entropy(logits, targets) + self.params.prior_weight * losses.prior_kl(logits)
