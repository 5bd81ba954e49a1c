"""T-revision: importance weights from an estimated transition matrix, which is then revised together with the network.

Xia et al., NeurIPS 2019, Algorithm 1. Plain training and an estimate of T by anchor points; training by cross-entropy
times β = p_y / (Tᵀp)_y, a constant; at last T + ΔT in place of T, where β has a gradient to the network and to ΔT,
which begins at 0. Each phase begins with the weights of the best epoch of the one before, by noisy validation accuracy
of the network's own answer (the released code asks Tᵀp in the second phase).

The network is asked without T. ΔT is added once for a batch, as the paper writes it (the released code adds it once
more with every sample), and T + ΔT is not normalised; entries below 0 count as 0, since a denominator near 0 would let
one image outweigh all others. The first phase runs at a constant rate without momentum, the second through the spec's
schedule. T is estimated from plain images (the released code augments them).

Published: resnet18 (CIFAR-10), resnet34 (CIFAR-100), batches of 128, weight decay 1e-4, a tenth held out, SGD 0.01, in
the second phase times 0.1 at 40 and 80 of 200 epochs. The published phases have 20, 200 and 200 epochs, of which a
short training would estimate T from one; the default shares are those of a later benchmark, 20, 30 and 30.

Shapes: `B` batch, `C` classes, logits (B, C), T (C, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ml import method
from ml.blocks import best_weights, losses, optimizers, schedules, single_network, transition
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "T-revision",
    "paper": "Xia et al.: Are Anchor Points Really Indispensable in Label-Noise Learning? (NeurIPS 2019)",
    "idea": "Each image counts as much as its label is likely to be clean, by an estimated matrix of the mistakes "
    "between classes. In the end a small correction of the matrix is learned together with the network.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "short": {},
        "cifar10": {"estimate": 20 / 420, "revise": 200 / 420},
        "cifar100": {"estimate": 15 / 415, "revise": 200 / 415, "anchor_quantile": 1.0},
    },
}


class Params(transition.TransitionParams):
    """Settings of T-revision."""

    estimate: float = Field(
        default=0.25,
        gt=0.0,
        lt=1.0,
        description="Share of the epochs that train plainly, for the estimate; at least one. None with a known matrix.",
    )
    revise: float = Field(
        default=0.375, gt=0.0, lt=1.0, description="Share of the epochs, the last ones, in which the matrix is revised."
    )
    revise_rate: float = Field(
        default=5e-7, gt=0.0, le=0.1, description="Adam's learning rate in them, for network and matrix."
    )

    @model_validator(mode="after")
    def _something_is_left_to_weigh(self) -> Self:
        if self.estimate + self.revise >= 1.0:
            raise ValueError("estimate and revise together must leave epochs between them")
        return self


class Method(single_network.SingleNetworkMethod[Params]):
    """Algorithm 1."""

    transition: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.kept = best_weights.BestWeights(self.network)
        classes = self.network.class_count
        self.register_buffer("transition", transition.known_matrix(params.transition, classes))
        self.slack = nn.Parameter(torch.zeros(classes, classes))  # ΔT

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Plain, weighted, revised; the plain phase only where T is to be estimated."""
        p = self.params
        known = p.transition is not None
        first, last = (0.0 if known else p.estimate), p.revise
        plain, weighted, revised = schedules.phase_lengths(training.epochs, [first, 1.0 - first - last])
        whole = self.network.parameters

        def slow() -> Optimizers:
            return Optimizers((replace(training, momentum=0.0).sgd(whole()),), schedules.constant)

        def scheduled() -> Optimizers:
            return Optimizers((training.sgd(whole()),), training.factor)

        def revising() -> Optimizers:
            adam = optimizers.adam([*whole(), self.slack], p.revise_rate, training.weight_decay)
            return Optimizers(
                (adam,), training.factor, constant_rate=(adam,)
            )  # the schedule is for what a wrapper trains

        return [
            Phase(plain, self._plain, slow, begin_epoch=lambda lab: self._keep(lab, 0), name="estimate"),
            Phase(
                weighted,
                self._weighted,
                scheduled,
                enter=method.no_preparation if known else self._estimate,
                begin_epoch=lambda lab: self._keep(lab, plain),
                name="weigh",
            ),
            Phase(revised, self._revised, revising, enter=lambda lab: self._return(lab, plain), name="revise"),
        ]

    def _plain(self, batch: Batch) -> Tensor:
        return losses.cross_entropy(self._seen(batch), batch.labels)

    def _weighted(self, batch: Batch) -> Tensor:
        logits = self._seen(batch)
        weights = transition.importance_weights(logits.detach(), batch.labels, self.transition)
        return (weights * losses.cross_entropies(logits, batch.labels)).mean()

    def _revised(self, batch: Batch) -> Tensor:
        logits = self._seen(batch)
        weights = transition.importance_weights(logits, batch.labels, self.transition + self.slack)
        return (weights * losses.cross_entropies(logits, batch.labels)).mean()

    def _seen(self, batch: Batch) -> Tensor:
        logits: Tensor = self.network(batch.images)
        batch.record_logits(logits)
        return logits

    def _keep(self, lab: TrainContext, since: int) -> None:
        self.kept.follow(lab, self.network, since)

    def _return(self, lab: TrainContext, since: int) -> None:
        self._keep(lab, since)
        self.kept.restore(self.network)

    def _estimate(self, lab: TrainContext) -> None:
        self._return(lab, 0)
        answers = lab.score(lambda images: self.network(images).float().softmax(dim=1))
        self.transition.copy_(transition.estimate_matrix(answers, self.params.anchor_quantile))
