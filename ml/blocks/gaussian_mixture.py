"""Two-component Gaussian mixture of per-sample losses: which samples are learned easily, and so are probably clean.

Float64 on the device of the values, without random draws: the same losses always give the same mixture.

Shapes: `N` samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TWO_MEANS_ROUNDS = 100  # for the start; in one dimension a dozen suffice


class Components(NamedTuple):
    """Weight, mean and variance of both components, float64 (2,) each."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def clean_probability(
    losses: Tensor, *, iterations: int = 10, tolerance: float = 1e-2, least_variance: float = 5e-4
) -> Tensor:
    """P(clean | loss): the posterior of the component with the smaller mean, f32 (N,).

    Expectation maximisation from 2-means. The defaults are those of the released DivideMix.

    Args:
        losses: (N,), scaled to [0, 1].
        iterations: at most so many.
        tolerance: stop when the mean log-likelihood changes by less.
        least_variance: added to each variance.
    """
    values = losses.double()
    components = _maximization_step(values, _two_means(values), least_variance)
    previous = -math.inf
    for _ in range(iterations):
        likelihood, shares = _expectation_step(values, components)
        components = _maximization_step(values, shares, least_variance)
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    _, shares = _expectation_step(values, components)
    return shares[components.mean.argmin()].float()


def scale_to_unit(losses: Tensor) -> Tensor:
    """Losses (N,) scaled to [0, 1] by their smallest and largest; all 0 where they are equal."""
    smallest, largest = losses.aminmax()
    return (losses - smallest) / (largest - smallest).clamp_min(torch.finfo(losses.dtype).tiny)


def _two_means(values: Tensor) -> Tensor:
    """2-means from the two extremes: membership (2, N) of 0 and 1."""
    smallest, largest = values.aminmax()
    middle = (smallest + largest) / 2
    for _ in range(MAX_TWO_MEANS_ROUNDS):
        upper = (values > middle).double()
        counts, total = upper.sum(), values.sum()
        above = (upper * values).sum()
        means = above / counts.clamp_min(1), (total - above) / (len(values) - counts).clamp_min(1)
        previous, middle = middle, (means[0] + means[1]) / 2
        if bool(previous == middle):
            break
    upper = (values > middle).double()
    return torch.stack([1 - upper, upper])


def _maximization_step(values: Tensor, shares: Tensor, least_variance: float) -> Components:
    """The components that make these shares (2, N) likeliest."""
    counts = shares.sum(dim=1) + 10 * torch.finfo(torch.float64).eps
    mean = (shares * values).sum(dim=1) / counts
    variance = (shares * (values - mean[:, None]).square()).sum(dim=1) / counts
    return Components(counts / len(values), mean, variance + least_variance)


def _expectation_step(values: Tensor, components: Components) -> tuple[float, Tensor]:
    """Mean log-likelihood, and each component's share of every value (2, N)."""
    weight, mean, variance = (parameter[:, None] for parameter in components)
    density = weight.log() - 0.5 * ((2 * math.pi * variance).log() + (values - mean).square() / variance)
    total = density.logsumexp(dim=0)
    return float(total.mean()), (density - total).exp()
