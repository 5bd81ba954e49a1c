"""Two-component beta mixture of per-sample losses, which estimates how probable a wrong label is.

Arazo et al., ICML 2019, section 3.1. Beta densities fit losses that crowd at both ends of their range better than the
Gaussians of `gaussian_mixture` do. The posterior is stored as a table, so that a training step can look losses up
without waiting for the device. Fitting is in float64 and draws nothing at random.

The first entry of the table is the posterior at `LOOKUP_MARGIN`, where the released code has it at 1e-12. Near 0 it
goes as x^(α1 - α0): where the α of the large losses is the smaller one by however little, it is close to 1 at 1e-12, as
the table's maximum, which `hold_maximum` then repeats to its end, so that every label is called wrong. At 1e-4 that
takes a clear difference. In the usual case both are near 0, and no looked-up value is below `LOOKUP_MARGIN`.

Shapes: `N` samples, `B` batch, `n` values; component 0 has the small losses, component 1 the large ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

BINS = 100  # of the table
QUANTILES = (0.05, 0.95)  # losses outside them are not fitted
FIT_MARGIN, LOOKUP_MARGIN = 1e-3, 1e-4  # distance of scaled losses from 0 and 1, in fitting and in looking up
ITERATIONS = 10
START = ((1.0, 2.0), (2.0, 1.0))  # α and β of component 0 and of component 1


class BetaMixture(nn.Module):
    """The posterior of component 1 by loss; 1/2 everywhere before the first fit."""

    bounds: Tensor  # f32 (2,): smallest and largest fitted loss
    table: Tensor  # f32 (BINS,): posterior over scaled losses

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.tensor([0.0, 1.0]))
        self.register_buffer("table", torch.full((BINS,), 0.5))

    def fit(self, losses: Tensor) -> None:
        """Fit the mixture to the losses (N,) of all samples."""
        # scale the losses between the two quantiles to (0, 1)
        values = losses.double()
        quantiles = torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)
        smallest, largest = torch.quantile(values, quantiles).unbind()
        self.bounds.copy_(torch.stack([smallest, largest]))
        inner = values[(values >= smallest) & (values <= largest)]
        parameters = fit_components(self._scale(inner).clamp(FIT_MARGIN, 1 - FIT_MARGIN))

        # tabulate the posterior of large losses
        grid = torch.linspace(LOOKUP_MARGIN, 1 - LOOKUP_MARGIN, BINS, dtype=torch.float64, device=values.device)
        self.table.copy_(hold_maximum(responsibilities(grid, *parameters)[1]))

    def noisy_probability(self, losses: Tensor) -> Tensor:
        """P(the label is wrong | its loss) for losses (B,): f32 (B,) in [1e-4, 1 - 1e-4]."""
        scaled = self._scale(losses.float()).clamp(LOOKUP_MARGIN, 1 - LOOKUP_MARGIN)
        return self.table[(scaled * BINS).long()].clamp(LOOKUP_MARGIN, 1 - LOOKUP_MARGIN)

    def _scale(self, losses: Tensor) -> Tensor:
        smallest, largest = self.bounds.to(losses.dtype)
        scaled: Tensor = (losses - smallest) / (largest - smallest + 1e-6)
        return scaled


def fit_components(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit both beta densities by ten rounds of expectation maximisation with weighted moments.

    Args:
        values: float64 (n,) inside (0, 1).

    Returns:
        Weights, α and β of the components, float64 (2,) each.
    """
    weight = torch.full((2,), 0.5, dtype=torch.float64, device=values.device)
    alpha, beta = (
        torch.tensor(column, dtype=torch.float64, device=values.device) for column in zip(*START, strict=True)
    )
    for _ in range(ITERATIONS):
        # E-step
        shares = responsibilities(values, weight, alpha, beta).clamp_min(1e-12)
        # M-step: α and β from each component's weighted mean and variance
        total = shares.sum(dim=1)
        mean = (shares * values).sum(dim=1) / total
        variance = (shares * (values - mean[:, None]).square()).sum(dim=1) / total
        # both clamps are for degenerate components: all on one point, or split between 0 and 1
        concentration = (mean * (1 - mean) / variance.clamp_min(1e-8) - 1).clamp_min(1e-3)
        alpha, beta = mean * concentration, (1 - mean) * concentration
        weight = total / total.sum()
    return weight, alpha, beta


def responsibilities(values: Tensor, weight: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Posterior of each component for every value: (2, n), columns sum to 1.

    Args:
        values: float64 (n,) inside (0, 1).
        weight: of the components, float64 (2,), sum 1.
        alpha: float64 (2,), above 0.
        beta: float64 (2,), above 0.
    """
    norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    log_power, log_complement = (alpha - 1)[:, None] * values.log(), (beta - 1)[:, None] * (-values).log1p()
    return ((weight.log() - norm)[:, None] + log_power + log_complement).softmax(dim=0)


def hold_maximum(posterior: Tensor) -> Tensor:
    """The table (n,) with its maximum repeated to the right of where it is reached.

    A fitted posterior can fall again at the largest losses; those labels are still the most suspicious ones.
    """
    bins = torch.arange(len(posterior), device=posterior.device)
    return torch.where(bins >= posterior.argmax(), posterior.max(), posterior)
