"""Sparse over-parameterisation (SOP): every sample has variables u and v that explain the error of its label.

Liu, Zhu, Qu, You, ICML 2022. The variables enter as squares, start near 0 and learn at large rates, so they grow only
where something has to be explained: sparsity without a penalty.

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

INITIAL_STD = 1e-8  # of u and v
MIN_PROBABILITY = 1e-4  # a probability counts as at least this
PUBLISHED_BATCH = 128  # the batch size of the published learning rates


class OverparameterizationParams(MethodParams):
    """Learning rates of the variables."""

    u_learning_rate: float = Field(
        default=10.0,
        ge=0.0,
        le=10_000.0,
        description="Learning rate of u, what a sample adds to its given label: 1 for 100 classes, 0.1 where their "
        "noise is asymmetric.",
    )
    v_learning_rate: float = Field(
        default=10.0,
        ge=0.0,
        le=10_000.0,
        description="Learning rate of v, what a sample takes from the other classes: 100 for 100 classes with "
        "asymmetric noise.",
    )
    detach_u_in_mse: bool = Field(
        default=False,
        description="Whether u learns from the cross-entropy alone, as in the paper (with u_learning_rate 1 for 100 "
        "classes with asymmetric noise); otherwise from the squared error too, as the released code does.",
    )


class LossTerms(NamedTuple):
    """Loss terms of one batch."""

    cross_entropy: Tensor  # L_CE, a scalar; gradients reach the network and u
    squared_error: Tensor  # L_MSE, a scalar; gradients reach v, and u unless it is detached
    probabilities: Tensor  # (B, C): predictions with the samples' variables, at least 1e-4, summing to about 1


class SampleVariables(nn.Module):
    """u (N, 1) and v (N, C)."""

    def __init__(self, samples: int, classes: int) -> None:
        """Draw u and v near 0, for N samples and C classes."""
        super().__init__()
        self.u = nn.Parameter(torch.empty(samples, 1).normal_(std=INITIAL_STD))
        self.v = nn.Parameter(torch.empty(samples, classes).normal_(std=INITIAL_STD))

    def loss_terms(self, logits: Tensor, labels: Tensor, index: Tensor, *, detach_u: bool = False) -> LossTerms:
        """The function `loss_terms`, see there, of the samples at the positions `index`, int64 (B,)."""
        return loss_terms(logits, labels, self.u[index], self.v[index], detach_u=detach_u)

    def sgd(self, params: OverparameterizationParams) -> torch.optim.Optimizer:
        """Gradient descent on u and v, without momentum and weight decay."""
        groups = [
            {"params": [self.u], "lr": params.u_learning_rate},
            {"params": [self.v], "lr": params.v_learning_rate},
        ]
        return torch.optim.SGD(groups, lr=0.0, fused=True)

    def rescale_gradients(self, batch_size: int) -> None:
        """Make a sample's gradient independent of the batch size, by which the mean over a batch has divided it."""
        for variable in (self.u, self.v):
            if variable.grad is not None:
                variable.grad.mul_(batch_size / PUBLISHED_BATCH)


P = TypeVar("P", bound=OverparameterizationParams)


class OverparameterizedMethod(single_network.SingleNetworkMethod[P]):
    """A method with one network, and u and v of every sample."""

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network and the variables; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.variables = SampleVariables(len(labels), self.network.class_count)

    def network_and_variables(self, training: TrainHyperparameters) -> Optimizers:
        """The network's SGD on the training's schedule, and the variables' at constant rates."""
        variables = self.variables.sgd(self.params)
        network = training.sgd(self.network.parameters())
        return Optimizers((network, variables), training.factor, constant_rate=(variables,))

    def loss_terms(self, logits: Tensor, labels: Tensor, index: Tensor) -> LossTerms:
        """The function `loss_terms`, see there, of the samples at the positions `index`, int64 (B,)."""
        return self.variables.loss_terms(logits, labels, index, detach_u=self.params.detach_u_in_mse)

    def rescale_gradients(self, batch: Batch) -> None:
        """`SampleVariables.rescale_gradients` for a batch, to be called before the optimiser step."""
        self.variables.rescale_gradients(len(batch.index))


def loss_terms(logits: Tensor, labels: Tensor, u: Tensor, v: Tensor, *, detach_u: bool = False) -> LossTerms:
    """L_CE (Eq. 5) and L_MSE (Eq. 6) of a batch.

    Args:
        logits: (B, C).
        labels: given labels int64 (B,).
        u: of these samples, (B, 1).
        v: of these samples, (B, C).
        detach_u: no gradient of L_MSE into u.
    """
    # s = u² on the given class - v² on the others
    given_targets = losses.one_hot(labels, logits.shape[1])
    added, removed = (u.square() * given_targets).clamp(0, 1), (v.square() * (1 - given_targets)).clamp(0, 1)

    # Eq. 5: cross-entropy of the normalised sum of prediction and s
    shifted = (logits.float().softmax(dim=1) + added - removed.detach()).clamp_min(MIN_PROBABILITY)
    probabilities = functional.normalize(shifted, p=1.0, dim=1).clamp(MIN_PROBABILITY, 1)
    cross_entropy = -(given_targets * probabilities.log()).sum(dim=1).mean()

    # Eq. 6: squared error of predicted class + s against the given label
    predicted = losses.one_hot(logits.argmax(dim=1), logits.shape[1])
    error = predicted + (added.detach() if detach_u else added) - removed - given_targets
    return LossTerms(cross_entropy, error.square().sum(dim=1).mean(), probabilities)


def class_balance_loss(probabilities: Tensor) -> Tensor:
    """H(uniform, batch mean of probabilities (B, C)): a scalar, smallest where all classes are equally frequent."""
    return -probabilities.mean(dim=0).clamp_min(MIN_PROBABILITY).log().mean()
