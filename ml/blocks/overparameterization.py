"""Sparse over-parameterisation: every sample has variables of its own that explain its label's error, so that the
network need not (Liu et al., ICML 2022).

Products of tiny numbers learned at large rates grow only where something is to be explained: sparsity without a
penalty.

Shapes: `N` samples, `B` batch, `C` classes; f32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ml.blocks import losses, single_network
from ml.method import Batch, MethodParams, Network, Optimizers, TrainHyperparameters

SMALL = 1e-8  # deviation of the first values
LEAST = 1e-4  # a probability counts as at least this
USUAL_BATCH = 128  # for which the published learning rates are


class OverparameterizationParams(MethodParams):
    """How fast the variables grow."""

    u_learning_rate: float = Field(
        default=10.0,
        ge=0.0,
        le=10_000.0,
        description="Of what a sample adds to its given label: 1 for 100 classes, 0.1 where their noise is asymmetric.",
    )
    v_learning_rate: float = Field(
        default=10.0,
        ge=0.0,
        le=10_000.0,
        description="Of what a sample takes from the other classes: 100 for 100 classes with asymmetric noise.",
    )
    detach_u_in_mse: bool = Field(
        default=False,
        description="Whether u learns from the cross-entropy alone, as in the paper (with u_learning_rate 1 for 100 "
        "classes with asymmetric noise); otherwise from the squared error too, as the released code does.",
    )


class LossTerms(NamedTuple):
    """Of one batch."""

    cross_entropy: Tensor  # scalar; gradients reach the network and u
    squared_error: Tensor  # scalar; gradients reach v, and u unless it is detached
    probabilities: Tensor  # (B, C): answers with what their samples explain, at least LEAST, summing to about 1


class SampleVariables(nn.Module):
    """u and v of every sample."""

    def __init__(self, samples: int, classes: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(samples, 1).normal_(std=SMALL))
        self.v = nn.Parameter(torch.empty(samples, classes).normal_(std=SMALL))

    def loss_terms(self, logits: Tensor, labels: Tensor, index: Tensor, *, detach_u: bool = False) -> LossTerms:
        """Of the samples int64 (B,), from their logits (B, C) and given labels int64 (B,)."""
        return loss_terms(logits, labels, self.u[index], self.v[index], detach_u=detach_u)

    def sgd(self, params: OverparameterizationParams) -> torch.optim.Optimizer:
        """Plain gradient descent, without momentum and weight decay."""
        groups = [
            {"params": [self.u], "lr": params.u_learning_rate},
            {"params": [self.v], "lr": params.v_learning_rate},
        ]
        return torch.optim.SGD(groups, lr=0.0, fused=True)

    def undo_mean(self, batch_size: int) -> None:
        """A batch's mean divides a sample's gradient by the batch size: make it that of the usual one."""
        for variable in (self.u, self.v):
            if variable.grad is not None:
                variable.grad.mul_(batch_size / USUAL_BATCH)


P = TypeVar("P", bound=OverparameterizationParams)


class OverparameterizedMethod(single_network.SingleNetworkMethod[P]):
    """One network, and u and v of every sample."""

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.variables = SampleVariables(len(labels), self.network.class_count)

    def optimizers(self, training: TrainHyperparameters) -> Optimizers:
        """The network's, on the spec's schedule, and the variables', whose rates never move."""
        own = self.variables.sgd(self.params)
        return Optimizers((training.sgd(self.network.parameters()), own), training.factor, constant_rate=(own,))

    def explained(self, logits: Tensor, batch: Batch) -> LossTerms:
        """Both terms of a batch's logits (B, C), with what its samples' variables explain."""
        return self.variables.loss_terms(logits, batch.labels, batch.index, detach_u=self.params.detach_u_in_mse)

    def undo_mean(self, batch: Batch) -> None:
        """Before a step: see `SampleVariables.undo_mean`."""
        self.variables.undo_mean(len(batch.index))


def loss_terms(logits: Tensor, labels: Tensor, u: Tensor, v: Tensor, *, detach_u: bool = False) -> LossTerms:
    """L_CE and L_MSE (Eq. 5, 6) of a batch whose samples have u (B, 1) and v (B, C)."""
    given = losses.one_hot(labels, logits.shape[1])
    added, taken = (u.square() * given).clamp(0, 1), (v.square() * (1 - given)).clamp(0, 1)
    shifted = (logits.float().softmax(dim=1) + added - taken.detach()).clamp_min(LEAST)
    probabilities = functional.normalize(shifted, p=1.0, dim=1).clamp(LEAST, 1)
    cross_entropy = -(given * probabilities.log()).sum(dim=1).mean()
    answered = losses.one_hot(logits.argmax(dim=1), logits.shape[1])
    error = answered + (added.detach() if detach_u else added) - taken - given
    return LossTerms(cross_entropy, error.square().sum(dim=1).mean(), probabilities)


def class_balance_loss(probabilities: Tensor) -> Tensor:
    """H(uniform, batch mean of probabilities (B, C)): a scalar, smallest where all classes come equally often."""
    return -probabilities.mean(dim=0).clamp_min(LEAST).log().mean()
