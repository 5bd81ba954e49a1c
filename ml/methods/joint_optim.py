"""Joint optimisation: labels are learned together with the network, and a fresh network then learns from them.

Tanaka et al., CVPR 2018. Stage 1 trains at a constant high rate, which learns little by heart; from its middle on every
label is replaced by the mean of the last answers that its image got in training. Two terms keep the labels from
drifting into one class (Eq. 5, with uniform classes) and from staying flat (Eq. 6). Stage 2 trains a fresh network on
the soft labels of stage 1 and on nothing else.

Both stages are shares of the epochs: the released code's are 200, of which 70 before the first replacement, and 120.
The spec's learning rate is that of stage 1; stage 2's is a multiple of it, with the spec's schedule.

Published: preact resnet of depth 32, batches of 128, weight decay 1e-4, learning rate 0.08 (0.03 for asymmetric noise),
stage 2 at 0.2 times 0.1 at 40 and 80 of 120, a tenth held out. Ours starts with the answers it has where a short
training has not had ten.

Shapes: `N` images, `B` batch, `C` classes, logits and labels (., C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pydantic import Field
from torch import Tensor

from ml.blocks import losses, prediction_history, reinitialisation, schedules, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

ASYMMETRIC: dict[str, object] = {"prior_weight": 0.8, "entropy_weight": 0.4, "retrain_rate": 0.2 / 0.03}

ABOUT: About = {
    "title": "Joint-Optim",
    "paper": "Tanaka et al.: Joint Optimization Framework for Learning with Noisy Labels (CVPR 2018)",
    "idea": "At a high learning rate a network does not memorise: its answers, averaged, replace the labels. A fresh "
    "network then learns from those.",
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
    """The settings of joint optimisation."""

    learning_labels: float = Field(
        default=200 / 320, gt=0.0, le=1.0, description="Share of the epochs of stage 1, which learns labels as well."
    )
    begin: float = Field(
        default=70 / 320, gt=0.0, le=1.0, description="Share of the epochs before labels are first replaced."
    )
    averaged_epochs: int = Field(
        default=10, ge=1, le=100, description="A label is the mean of its image's answers in so many last epochs."
    )
    prior_weight: float = Field(
        default=1.2, ge=0.0, le=100.0, description="α: how much all classes should be answered equally often."
    )
    entropy_weight: float = Field(
        default=0.8, ge=0.0, le=100.0, description="β: how much each answer should be for one class."
    )
    retrain_rate: float = Field(
        default=2.5, gt=0.0, le=100.0, description="Stage 2's learning rate, as a multiple of stage 1's."
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """Stage 1, with and without replaced labels, and stage 2."""

    targets: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        classes = self.network.class_count
        self.register_buffer("targets", losses.one_hot(labels, classes))  # (N, C)
        self.answers = prediction_history.PredictionHistory(len(labels), classes, params.averaged_epochs)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Given labels, labels that follow the answers, a fresh network on the last of them."""
        p = self.params
        begin = min(p.begin, p.learning_labels)
        shares = (begin, p.learning_labels - begin)
        given, learned, rest = schedules.phase_lengths(training.epochs, shares)

        def learning() -> Optimizers:
            return Optimizers((training.sgd(self.network.parameters()),), schedules.constant)

        def retraining() -> Optimizers:
            sgd = training.sgd(self.network.parameters(), scale=p.retrain_rate)
            return Optimizers((sgd,), training.factor)

        found = [
            Phase(given, self._learning, learning, name="given labels"),
            Phase(learned, self._learning, None, begin_epoch=self._replace, name="learning labels"),
            Phase(rest, self._retraining, retraining, enter=self._begin_anew, name="retraining"),
        ]
        return [phase for phase in found if phase.epochs]

    def _replace(self, _: TrainContext) -> None:
        """Labels become what was answered of late (section 3.2)."""
        self.targets.copy_(self.answers.mean())

    def _begin_anew(self, lab: TrainContext) -> None:
        self._replace(lab)
        reinitialisation.reinitialise(self.network, self.make(), reinitialisation.NETWORK_PARTS)

    def _learning(self, batch: Batch) -> Tensor:
        """Eq. 2; the answers that are remembered are those of the training views, by the batch's statistics."""
        logits = self.network(batch.images)
        batch.record_logits(logits)
        self.answers.write(batch.epoch, batch.index, logits.detach().float().softmax(dim=1))
        return joint_loss(logits, self.targets[batch.index], self.params.prior_weight, self.params.entropy_weight)

    def _retraining(self, batch: Batch) -> Tensor:
        logits = self.network(batch.images)
        batch.record_logits(logits)
        return losses.soft_cross_entropy(logits, self.targets[batch.index])


def joint_loss(logits: Tensor, targets: Tensor, prior_weight: float, entropy_weight: float) -> Tensor:
    """H(S, p) - α Σ_c log(s̄_c) / C + β H(p, p) (Eq. 2, 5, 6): targets S (B, C), s̄ the batch's mean answer; a scalar."""
    prior = losses.prior_kl(logits) + math.log(logits.shape[1])
    total = losses.soft_cross_entropy(logits, targets) + prior_weight * prior
    return total - entropy_weight * losses.negative_entropy(logits)
