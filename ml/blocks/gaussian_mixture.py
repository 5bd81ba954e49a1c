"""Two-component Gaussian mixture of per-sample losses: which samples belong to the component that is learned easily.

Knows no network and no label, only numbers (N,). Float64 on the values' device; no random draw, so the same losses
always split alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST_SEARCH = 100  # rounds of 2-means for the start; one dimension needs a dozen


class Components(NamedTuple):
    """Weight, mean and variance of both components, float64 (2,) each."""

    weight: Tensor
    mean: Tensor
    variance: Tensor


def clean_probability(
    losses: Tensor, *, iterations: int = 10, tolerance: float = 1e-2, least_variance: float = 5e-4
) -> Tensor:
    """Posterior of the component with the smaller mean, float32 (N,), for losses (N,) scaled to [0, 1].

    Expectation maximisation from the halves of 2-means, with the limits of the released DivideMix: at most 10
    iterations, until the mean log-likelihood moves by less than 0.01, 5e-4 added to each variance.
    """
    values = losses.double()
    components = _maximised(values, _halves(values), least_variance)
    previous = -math.inf
    for _ in range(iterations):
        likelihood, shares = _expected(values, components)
        components = _maximised(values, shares, least_variance)
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    _, shares = _expected(values, components)
    return shares[components.mean.argmin()].float()


def scale_to_unit(losses: Tensor) -> Tensor:
    """Losses (N,) brought to [0, 1] by their least and largest; all 0 where they are equal."""
    least, largest = losses.aminmax()
    return (losses - least) / (largest - least).clamp_min(torch.finfo(losses.dtype).tiny)


def _halves(values: Tensor) -> Tensor:
    """2-means from the two extremes: membership (2, N) of 0 and 1."""
    least, largest = values.aminmax()
    middle = (least + largest) / 2
    for _ in range(LONGEST_SEARCH):
        upper = (values > middle).double()
        counts, total = upper.sum(), values.sum()
        above = (upper * values).sum()
        means = above / counts.clamp_min(1), (total - above) / (len(values) - counts).clamp_min(1)
        moved, middle = middle, (means[0] + means[1]) / 2
        if bool(moved == middle):
            break
    upper = (values > middle).double()
    return torch.stack([1 - upper, upper])


def _maximised(values: Tensor, shares: Tensor, least_variance: float) -> Components:
    """The components that make these shares (2, N) likeliest."""
    counts = shares.sum(dim=1) + 10 * torch.finfo(torch.float64).eps
    mean = (shares * values).sum(dim=1) / counts
    variance = (shares * (values - mean[:, None]).square()).sum(dim=1) / counts
    return Components(counts / len(values), mean, variance + least_variance)


def _expected(values: Tensor, components: Components) -> tuple[float, Tensor]:
    """Mean log-likelihood, and each component's share of every value (2, N)."""
    weight, mean, variance = (each[:, None] for each in components)
    density = weight.log() - 0.5 * ((2 * math.pi * variance).log() + (values - mean).square() / variance)
    whole = density.logsumexp(dim=0)
    return float(whole.mean()), (density - whole).exp()
