"""T-revision: importance weights from an estimated transition matrix T, which is then revised with the network.

Xia et al., NeurIPS 2019, Algorithm 1. Three phases:

1. Estimate: plain training at a constant rate without momentum; T is then estimated by anchor points.
2. Weigh: cross-entropy times β = p_y / (Tᵀp)_y, a constant, through the training's schedule.
3. Revise: T + ΔT replaces T, where ΔT begins at 0 and β has a gradient into the network and ΔT.

Each phase begins with the weights of the best epoch of the one before, by noisy validation accuracy of the network's
own prediction (the released code uses Tᵀp in phase 2). With a known T there is no first phase.

The network predicts without T. ΔT is added once for a batch, as the paper writes it (the released code adds it once
more with every sample), and T + ΔT is not normalised. Its negative entries count as 0, since a denominator near 0 would
let one image outweigh all others. T is estimated from plain images (the released code augments them).

Published: resnet18 (CIFAR-10), resnet34 (CIFAR-100), batches of 128, weight decay 1e-4, a tenth held out, SGD 0.01, in
phase 2 times 0.1 at 40 and 80 of 200 epochs. The published phases have 20, 200 and 200 epochs, of which a short
training would estimate T from one; the default shares are those of a later benchmark, 20, 30 and 30.

Shapes: `B` batch, `C` classes, logits (B, C), T (C, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ml import method
from ml.blocks import best_weights, losses, optimizers, schedules, single_network, transition
from ml.method import Batch, Network, Optimizers, Phase, TrainContext, TrainHyperparameters
from ml.methods import About

PUBLISHED = {
    "batch_size": 128,
    "learning_rate": 0.01,
    "weight_decay": 1e-4,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "milestones": (0.2, 0.4),
    "validation_fraction": 0.1,
}

ABOUT: About = {
    "title": "T-revision",
    "paper": "Xia et al.: Are Anchor Points Really Indispensable in Label-Noise Learning? (NeurIPS 2019)",
    "idea": "Each image has the weight by which its label is likely to be clean, by an estimated transition matrix. In "
    "the end a small correction of the matrix is learned together with the network.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "short": {},
        "cifar10": {"estimate": 20 / 420, "revise": 200 / 420},
        "cifar100": {"estimate": 15 / 415, "revise": 200 / 415, "anchor_quantile": 1.0},
    },
    "training": {
        "cifar10": {**PUBLISHED, "network": "resnet18", "epochs": 420},
        "cifar100": {**PUBLISHED, "network": "resnet34", "epochs": 415},
    },
}


class Params(transition.TransitionParams):
    """Parameters of T-revision."""

    estimate: float = Field(
        default=0.25,
        gt=0.0,
        lt=1.0,
        description="Share of the epochs of plain training before the estimate; at least one epoch. None with a known "
        "matrix.",
    )
    revise: float = Field(
        default=0.375, gt=0.0, lt=1.0, description="Share of the epochs, the last ones, in which the matrix is revised."
    )
    revise_rate: float = Field(
        default=5e-7, gt=0.0, le=0.1, description="Adam's learning rate in these epochs, for network and matrix."
    )

    @model_validator(mode="after")
    def _weighing_needs_epochs(self) -> Self:
        if self.estimate + self.revise >= 1.0:
            raise ValueError("estimate and revise together must leave epochs between them")
        return self


class Method(single_network.SingleNetworkMethod[Params]):
    """Algorithm 1."""

    former_state_names: ClassVar = {"kept.": "best_weights."}
    transition: Tensor

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.best_weights = best_weights.BestWeights(self.network)
        classes = self.network.class_count
        self.register_buffer("transition", transition.known_matrix(params.transition, classes))
        self.slack = nn.Parameter(torch.zeros(classes, classes))  # ΔT

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """Estimate, unless T is known; weigh; revise."""
        p = self.params
        known = p.transition is not None
        first_share, last_share = (0.0 if known else p.estimate), p.revise
        estimating, weighing, revising = schedules.phase_lengths(
            training.epochs, [first_share, 1.0 - first_share - last_share]
        )
        network_parameters = self.network.parameters

        def without_momentum() -> Optimizers:
            return Optimizers((replace(training, momentum=0.0).sgd(network_parameters()),), schedules.constant)

        def adam() -> Optimizers:
            member = optimizers.adam([*network_parameters(), self.slack], p.revise_rate, training.weight_decay)
            return Optimizers((member,), training.factor, constant_rate=(member,))  # the factor is for a wrapper

        return [
            Phase(
                estimating,
                self.cross_entropy_step,
                without_momentum,
                begin_epoch=lambda context: self._update_best(context, 0),
                name="estimate",
            ),
            Phase(
                weighing,
                self._weighted_step,
                lambda: self.optimizers(training),
                enter=method.no_preparation if known else self._estimate,
                begin_epoch=lambda context: self._update_best(context, estimating),
                name="weigh",
            ),
            Phase(
                revising,
                self._revised_step,
                adam,
                enter=lambda context: self._restore_best(context, estimating),
                name="revise",
            ),
        ]

    # --- steps ---

    def _weighted_step(self, batch: Batch) -> Tensor:
        """Phase 2: β is a constant."""
        logits = self.predict_batch(batch)
        return batch.label_loss(
            lambda labels, _: weighted_cross_entropy(logits, logits.detach(), labels, self.transition)
        )

    def _revised_step(self, batch: Batch) -> Tensor:
        """Phase 3: β by T + ΔT, with gradients."""
        logits = self.predict_batch(batch)
        revised = self.transition + self.slack
        return batch.label_loss(lambda labels, _: weighted_cross_entropy(logits, logits, labels, revised))

    # --- between phases ---

    def _update_best(self, context: TrainContext, first_epoch: int) -> None:
        self.best_weights.update(context, self.network, first_epoch)

    def _restore_best(self, context: TrainContext, first_epoch: int) -> None:
        self._update_best(context, first_epoch)
        self.best_weights.restore(self.network)

    def _estimate(self, context: TrainContext) -> None:
        self._restore_best(context, 0)
        probabilities = context.score(lambda images: self.network(images).float().softmax(dim=1))
        self.transition.copy_(transition.estimate_matrix(probabilities, self.params.anchor_quantile))


def weighted_cross_entropy(logits: Tensor, weighing: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """Mean of β · CE over a batch: a scalar.

    Args:
        logits: (B, C).
        weighing: the logits (B, C) by which β is computed.
        labels: given labels int64 (B,).
        matrix: T, (C, C).
    """
    weights = transition.importance_weights(weighing, labels, matrix)
    return (weights * losses.cross_entropies(logits, labels)).mean()
