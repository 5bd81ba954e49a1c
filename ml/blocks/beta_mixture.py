"""Two-component beta mixture of per-sample losses: how probable a loss makes its label wrong (Arazo et al. 2019, 3.1).

Beside `mixture`, whose components are Gaussian: beta densities fit losses crowded at the ends of their range. Its
posterior is kept as a table, so that single losses can be asked for within a step without waiting.

Knows no network and no label, only numbers. Float64 while fitting; no random draw. Shapes: `N` samples, `B` batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BINS = 100  # of the table
RANGE = (0.05, 0.95)  # quantiles between which losses count
FITTED, ASKED = 1e-3, 1e-4  # how far scaled losses stay from 0 and 1, when fitting and when asking
ITERATIONS = 10
START = ((1.0, 2.0), (2.0, 1.0))  # α and β of the small losses' component and of the large ones'


class BetaMixture(nn.Module):
    """The posterior of the component of large losses; 1/2 everywhere before the first fit."""

    bounds: Tensor  # f32 (2,): least and largest loss that counted
    table: Tensor  # f32 (BINS,), over scaled losses

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor([0.0, 1.0]))
        self.register_buffer("table", torch.full((BINS,), 0.5))

    def fit(self, losses: Tensor) -> None:
        """Take in the losses (N,) of an epoch."""
        values = losses.double()
        least, largest = torch.quantile(values, torch.tensor(RANGE, dtype=torch.float64, device=values.device)).unbind()
        self.bounds.copy_(torch.stack([least, largest]))
        counted = values[(values >= least) & (values <= largest)]
        parameters = fit_components(self._scaled(counted).clamp(FITTED, 1 - FITTED))
        places = torch.linspace(ASKED, 1 - ASKED, BINS, dtype=torch.float64, device=values.device)
        self.table.copy_(hold_maximum(responsibilities(places, *parameters)[1]))

    def wrong(self, losses: Tensor) -> Tensor:
        """Probability of a wrong label by its loss (B,): f32 (B,) in [1e-4, 1 - 1e-4]."""
        scaled = self._scaled(losses.float()).clamp(ASKED, 1 - ASKED)
        return self.table[(scaled * BINS).long()].clamp(ASKED, 1 - ASKED)

    def _scaled(self, losses: Tensor) -> Tensor:
        least, largest = self.bounds.to(losses.dtype)
        scaled: Tensor = (losses - least) / (largest - least + 1e-6)
        return scaled


def fit_components(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, α and β of both components, float64 (2,) each, after ten rounds of expectation maximisation by weighted
    moments, for values float64 (n,) inside (0, 1)."""
    weight = torch.full((2,), 0.5, dtype=torch.float64, device=values.device)
    alpha, beta = (
        torch.tensor(column, dtype=torch.float64, device=values.device) for column in zip(*START, strict=True)
    )
    for _ in range(ITERATIONS):
        shares = responsibilities(values, weight, alpha, beta).clamp_min(1e-12)
        total = shares.sum(dim=1)
        mean = (shares * values).sum(dim=1) / total
        variance = (shares * (values - mean[:, None]).square()).sum(dim=1) / total
        # a component may come to lie on a single point, or spread as far as two points could
        certainty = (mean * (1 - mean) / variance.clamp_min(1e-8) - 1).clamp_min(1e-3)
        alpha, beta = mean * certainty, (1 - mean) * certainty
        weight = total / total.sum()
    return weight, alpha, beta


def responsibilities(values: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Each component's share of every value: (2, n), columns sum to 1."""
    norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    inside, outside = (alpha - 1)[:, None] * values.log(), (beta - 1)[:, None] * (-values).log1p()
    return ((weight.log() - norm)[:, None] + inside + outside).softmax(dim=0)


def hold_maximum(posterior: Tensor) -> Tensor:
    """The table (n,) with its maximum held to the right of where it is reached: the largest losses stay suspicious."""
    places = torch.arange(len(posterior), device=posterior.device)
    return torch.where(places >= posterior.argmax(), posterior.max(), posterior)
