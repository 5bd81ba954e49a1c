"""DMI: a loss that label noise which depends on the class alone does not change, up to a constant.

Xu et al., NeurIPS 2019. U = YᵀP, given labels times predicted probabilities, summed over a batch; the loss is
-log(|det U| + 1e-3). Label noise with the matrix T turns U into a product with T, so its determinant is that of clean
labels times det T. The loss cannot tell classes apart from their permutation, so it starts from what cross-entropy has
learned. Two phases:

1. Warm-up: cross-entropy.
2. DMI: the determinant loss at a low constant rate, from the weights of the warm-up's best epoch by noisy validation
   accuracy.

Here every batch counts, also a last smaller one, and momentum is not reset after each epoch, as it is in the released
code. A batch must contain every class: if one is absent, a row of U is 0, whatever is predicted, and so are determinant
and gradient. 100 classes need batches of 1024 and more; in batches of 256, 7.6 classes are absent on average, and the
result is that of cross-entropy. No setting was published for them.

Published: resnet34 (CIFAR-10), batches of 256, weight decay 1e-4; cross-entropy 120 epochs, SGD 0.1 times 0.1 at 40 and
80; DMI 100 epochs at a constant 1e-6, a fifth of the labels held out. Clothing1M: resnet50, 10 and 10 epochs.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ml.blocks import best_weights, losses, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

FLOOR = 1e-3  # added to |det U|
DIAGONAL = 1e-12  # added to that of U: the gradient needs an inverse, which a matrix of zeros does not have

ABOUT: About = {
    "title": "DMI",
    "paper": "Xu et al.: L_DMI: A Novel Information-theoretic Loss Function for Training Deep Nets Robust to Label "
    "Noise (NeurIPS 2019)",
    "idea": "Predictions and given labels should share information, measured by a determinant: label noise makes it "
    "smaller by the same factor for every network. Batches must be much larger than the number of classes.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10": {},
        "clothing1m": {"warm_up": 0.5, "rate": 1e-4},
    },
    "training": {
        "cifar10": {
            "network": "resnet34",
            "epochs": 220,
            "batch_size": 256,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (1 / 3, 2 / 3),
            "validation_fraction": 0.2,
        }
    },
}


class Params(MethodParams):
    """Parameters of DMI."""

    warm_up: float = Field(
        default=120 / 220,
        gt=0.0,
        le=1.0,
        description="Share of the epochs that train by cross-entropy, through the whole schedule; at least one epoch.",
    )
    rate: float = Field(
        default=1e-5,
        gt=0.0,
        le=1.0,
        description="Constant learning rate of the epochs after them, times the training's.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Cross-entropy, then the determinant."""

    former_state_names: ClassVar = {"kept.": "best_weights."}

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.best_weights = best_weights.BestWeights(self.network)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Warm-up and DMI."""
        first, rest = schedules.phase_lengths(training.epochs, [self.params.warm_up])

        def constant_rate() -> Optimizers:
            sgd = training.sgd(self.network.parameters(), scale=self.params.rate)
            return Optimizers((sgd,), training.factor, constant_rate=(sgd,))  # the factor is for what a wrapper trains

        scheduled = partial(self.optimizers, training)
        return [
            Phase(first, self.cross_entropy_step, scheduled, begin_epoch=self._update_best, name="warm-up"),
            Phase(rest, self._determinant_step, constant_rate, enter=self._restore_best, name="dmi"),
        ]

    def _determinant_step(self, batch: Batch) -> Tensor:
        logits = self.predict_batch(batch)
        return batch.label_loss(lambda labels, _: determinant_loss(logits, labels))

    def _update_best(self, context: TrainContext) -> None:
        self.best_weights.update(context, self.network, first_epoch=0)

    def _restore_best(self, context: TrainContext) -> None:
        self._update_best(context)
        self.best_weights.restore(self.network)


def determinant_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-log(|det U| + 1e-3) with U = YᵀP summed over the batch: a scalar, often negative.

    In float64 and by logarithms, since the determinant of 100 classes overflows.

    Args:
        logits: (B, C); P is their softmax.
        labels: given labels int64 (B,); Y is one-hot.
    """
    u = losses.one_hot(labels, logits.shape[1]).double().t() @ logits.double().softmax(dim=1)
    log_determinant = torch.linalg.slogdet(u + DIAGONAL * torch.eye(len(u), device=u.device)).logabsdet
    # with a class absent the determinant is 0; the diagonal would replace it by that of the other classes
    log_determinant = torch.where((u.sum(dim=1) > 0).all(), log_determinant, -math.inf)
    return -torch.logaddexp(log_determinant, torch.full_like(log_determinant, math.log(FLOOR))).float()
