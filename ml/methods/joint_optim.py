"""Joint optimisation: labels are learned together with the network, and a fresh network then learns from them.

Tanaka et al., CVPR 2018. Three phases:

1. Given labels: training at a constant high rate, at which networks memorise little (Eq. 2).
2. Learning labels: the same, and before each epoch every label is replaced by the mean of the last predictions for its
   image in training.
3. Retraining: a fresh network learns from the soft labels alone.

Two terms keep the labels from drifting into one class (Eq. 5, with a uniform prior) and from staying flat (Eq. 6).

The phases are shares of the epochs: the released code has 200 for the first two, of which 70 before the first
replacement, and 120 for the third. The training's learning rate is that of the first two; the third has a multiple of
it with the training's schedule. A short training that has not had ten predictions of an image averages those it has.

Published: preact resnet of depth 32, batches of 128, weight decay 1e-4, learning rate 0.08 (0.03 for asymmetric noise),
retraining at 0.2 times 0.1 at 40 and 80 of 120, a tenth held out.

Shapes: `N` images, `B` batch, `C` classes, logits and labels (., C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ml.blocks import losses, prediction_history, reinitialisation, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

ASYMMETRIC: dict[str, object] = {"prior_weight": 0.8, "entropy_weight": 0.4, "retrain_rate": 0.2 / 0.03}

ABOUT: About = {
    "title": "Joint-Optim",
    "paper": "Tanaka et al.: Joint Optimization Framework for Learning with Noisy Labels (CVPR 2018)",
    "idea": "At a high learning rate a network memorises little: its predictions, averaged, replace the labels. A "
    "fresh network then learns from those.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10 symmetric": {},
        "cifar10 asymmetric": ASYMMETRIC,
        "cifar100 symmetric": {},
        "cifar100 other": ASYMMETRIC,
    },
}


class Params(MethodParams):
    """Parameters of joint optimisation."""

    learning_labels: float = Field(
        default=200 / 320,
        gt=0.0,
        le=1.0,
        description="Share of the epochs before retraining, in which labels are learned as well.",
    )
    begin: float = Field(
        default=70 / 320, gt=0.0, le=1.0, description="Share of the epochs before labels are first replaced."
    )
    averaged_epochs: int = Field(
        default=10, ge=1, le=100, description="A label becomes the mean prediction of so many last epochs."
    )
    prior_weight: float = Field(
        default=1.2, ge=0.0, le=100.0, description="α: weight of predicting all classes equally often."
    )
    entropy_weight: float = Field(default=0.8, ge=0.0, le=100.0, description="β: weight of confident predictions.")
    retrain_rate: float = Field(
        default=2.5, gt=0.0, le=100.0, description="Learning rate of retraining, as a multiple of the training's."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """One network and a learned soft label of every image."""

    former_state_names: ClassVar = {"answers.": "predictions."}
    targets: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        classes = self.network.class_count
        self.register_buffer("targets", losses.one_hot(labels, classes))  # (N, C)
        self.predictions = prediction_history.PredictionHistory(len(labels), classes, params.averaged_epochs)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Given labels, learning labels, retraining; those that have epochs."""
        p = self.params
        begin = min(p.begin, p.learning_labels)
        first, second, rest = schedules.phase_lengths(training.epochs, (begin, p.learning_labels - begin))

        def constant() -> Optimizers:
            return self.optimizers(training, schedule=schedules.constant)

        def retraining() -> Optimizers:
            return self.optimizers(training, scale=p.retrain_rate)

        phases = [
            Phase(first, self._joint_step, constant, name="given labels"),
            Phase(second, self._joint_step, None, begin_epoch=self._replace_labels, name="learning labels"),
            Phase(rest, self._retraining_step, retraining, enter=self._start_fresh, name="retraining"),
        ]
        return [phase for phase in phases if phase.epochs]

    def _replace_labels(self, _: TrainContext) -> None:
        """Labels become the mean of the last predictions (section 3.2)."""
        self.targets.copy_(self.predictions.mean())

    def _start_fresh(self, context: TrainContext) -> None:
        self._replace_labels(context)
        reinitialisation.reinitialise(self.network, self.make_network(), reinitialisation.NETWORK_PARTS)

    def _joint_step(self, batch: Batch) -> Tensor:
        """Eq. 2; the stored predictions are those in training mode for augmented views."""
        logits = self.predict_batch(batch)
        slot = batch.of_epoch(self.predictions.slot)
        self.predictions.write(slot, batch.index, logits.detach().float().softmax(dim=1))
        p = self.params
        return batch.label_loss(
            lambda _, index: joint_loss(logits, self.targets[index], p.prior_weight, p.entropy_weight)
        )

    def _retraining_step(self, batch: Batch) -> Tensor:
        logits = self.predict_batch(batch)
        return batch.label_loss(lambda _, index: losses.soft_cross_entropy(logits, self.targets[index]))


def joint_loss(logits: Tensor, targets: Tensor, prior_weight: float, entropy_weight: float) -> Tensor:
    """H(S, p) - α Σ_c log(s̄_c) / C + β H(p, p), a scalar (Eq. 2, 5 and 6), where s̄ is the batch's mean prediction.

    Args:
        logits: (B, C); p is their softmax.
        targets: soft labels S, (B, C).
        prior_weight: α.
        entropy_weight: β.
    """
    prior = losses.prior_kl(logits) + math.log(logits.shape[1])
    total = losses.soft_cross_entropy(logits, targets) + prior_weight * prior
    return total - entropy_weight * losses.negative_entropy(logits)
