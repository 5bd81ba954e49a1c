"""DMI: a loss that noise which depends on the class alone does not change, up to a constant.

Xu et al., NeurIPS 2019. U = YᵀP, given labels against answers, summed over a batch; the loss is -log(|det U| + 1e-3).
Label noise with matrix T makes UT' of U, so its determinant is that of clean labels times det T. The loss cannot tell
classes apart from their permutation, so it begins with what cross-entropy has learned: the weights of that phase's
best epoch by noisy validation accuracy. Here every batch counts, also a last smaller one, and momentum is not dropped
after each epoch, as it is in the released code.

A batch must hold every class: with one absent, a row of U is 0, whatever the answers are, and so are determinant and
gradient. 100 classes need batches of 1024 and more; of 256 labels 7.6 classes are absent on average, and what comes
back is cross-entropy's answer. No setting was published for them.

Published: resnet34 (CIFAR-10), batches of 256, weight decay 1e-4; cross-entropy 120 epochs, SGD 0.1 times 0.1 at 40 and
80; DMI 100 epochs at a constant 1e-6, a tenth of the labels held out. Clothing1M: resnet50, 10 and 10 epochs.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import best_weights, losses, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

FLOOR = 1e-3  # added to |det U|
NUDGE = 1e-12  # on the diagonal of U: a matrix of exact zeros has no inverse, and a gradient asks for one

ABOUT: About = {
    "title": "DMI",
    "paper": "Xu et al.: L_DMI: A Novel Information-theoretic Loss Function for Training Deep Nets Robust to Label "
    "Noise (NeurIPS 2019)",
    "idea": "Answers and given labels should share information, measured by a determinant: swapped classes make it "
    "smaller by the same factor for every network. Batches must be much larger than the number of classes.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10": {},
        "clothing1m": {"warm_up": 0.5, "rate": 1e-4},
    },
}


class Params(MethodParams):
    """Settings of DMI."""

    warm_up: float = Field(
        default=120 / 220,
        gt=0.0,
        le=1.0,
        description="Share of the epochs that train by cross-entropy, through the whole schedule; at least one.",
    )
    rate: float = Field(
        default=1e-5,
        gt=0.0,
        le=1.0,
        description="Learning rate of the epochs after them, times the training's: it stays the same throughout.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy, then the determinant."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.kept = best_weights.BestWeights(self.network)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Warm-up and the rest."""
        first, rest = schedules.phase_lengths(training.epochs, [self.params.warm_up])

        def scheduled() -> Optimizers:
            return Optimizers((training.sgd(self.network.parameters()),), training.factor)

        def slow() -> Optimizers:
            sgd = training.sgd(self.network.parameters(), scale=self.params.rate)
            return Optimizers(
                (sgd,), training.factor, constant_rate=(sgd,)
            )  # the schedule is for what a wrapper trains

        return [
            Phase(first, self.plain, scheduled, begin_epoch=self._keep, name="warm-up"),
            Phase(rest, self._informed, slow, enter=self._return, name="dmi"),
        ]

    def _informed(self, batch: Batch) -> Tensor:
        logits = self.network(batch.images)
        batch.record_logits(logits)
        return determinant_loss(logits, batch.labels)

    def _keep(self, lab: TrainContext) -> None:
        self.kept.follow(lab, self.network, since=0)

    def _return(self, lab: TrainContext) -> None:
        self._keep(lab)
        self.kept.restore(self.network)


def determinant_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(|det U| + 1e-3), U = YᵀP, P the softmax of logits (B, C): a scalar, often negative, as U sums over a batch.

    In float64 and by logarithms: of 100 classes the determinant itself is no number.
    """
    counted = losses.one_hot(labels, logits.shape[1]).double().t() @ logits.double().softmax(dim=1)
    size = torch.linalg.slogdet(counted + NUDGE * torch.eye(len(counted), device=counted.device)).logabsdet
    size = torch.where((counted.sum(dim=1) > 0).all(), size, -math.inf)  # the nudge would count the other classes'
    return -torch.logaddexp(size, torch.full_like(size, math.log(FLOOR))).float()
