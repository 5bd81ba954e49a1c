"""The mixture of two Gaussians: against the densities that made the values, and against its definition, spelled out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ml.blocks import gaussian_mixture


def two_gaussians(clean: int, noisy: int) -> tuple[np.ndarray, np.ndarray]:
    """Values around 0.1 and around 0.6, in mixed order, and the true posterior of the lower component."""
    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(0.1, 0.06, clean), random.normal(0.6, 0.12, noisy)])
    random.shuffle(values)

    def density(mean: float, deviation: float, count: int) -> np.ndarray:
        return count * np.exp(-0.5 * ((values - mean) / deviation) ** 2) / deviation

    lower, upper = density(0.1, 0.06, clean), density(0.6, 0.12, noisy)
    return values, lower / (lower + upper)


@pytest.mark.parametrize(("clean", "noisy"), [(3000, 2000), (4800, 200), (500, 4500)])
def test_it_recovers_who_came_from_the_lower_gaussian(clean: int, noisy: int) -> None:
    values, truth = two_gaussians(clean, noisy)
    posterior = gaussian_mixture.clean_probability(torch.from_numpy(values)).double().numpy()

    assert np.abs(posterior - truth).mean() < 0.02
    assert ((posterior > 0.5) == (truth > 0.5)).mean() > 0.98


def test_expectation_maximisation_is_its_definition() -> None:
    """The same start and limits in plain Python, value by value."""
    values = [0.0, 0.05, 0.1, 0.12, 0.4, 0.55, 0.7, 1.0]
    shares = [(1.0, 0.0)] * 4 + [(0.0, 1.0)] * 4  # 2-means parts them here
    previous = -math.inf
    for iteration in range(11):
        components = []
        for k in (0, 1):
            count = sum(share[k] for share in shares)
            mean = sum(share[k] * v for share, v in zip(shares, values, strict=True)) / count
            variance = sum(share[k] * (v - mean) ** 2 for share, v in zip(shares, values, strict=True)) / count + 5e-4
            components.append((count / len(values), mean, variance))
        densities = [
            [w * math.exp(-((v - m) ** 2) / (2 * s)) / math.sqrt(2 * math.pi * s) for w, m, s in components]
            for v in values
        ]
        likelihood = sum(math.log(sum(row)) for row in densities) / len(values)
        shares = [(low / (low + high), high / (low + high)) for low, high in densities]
        if iteration == 10 or abs(likelihood - previous) < 1e-9:
            break
        previous = likelihood
    posterior = gaussian_mixture.clean_probability(torch.tensor(values, dtype=torch.float64), tolerance=1e-9)

    assert posterior.tolist() == pytest.approx([low for low, _ in shares], abs=1e-5)


def test_it_draws_nothing_and_order_does_not_matter() -> None:
    values = torch.from_numpy(two_gaussians(300, 200)[0])
    posterior = gaussian_mixture.clean_probability(values)

    assert torch.equal(posterior, gaussian_mixture.clean_probability(values))
    torch.testing.assert_close(gaussian_mixture.clean_probability(values.flip(0)).flip(0), posterior)
    assert posterior.dtype == torch.float32
    assert ((posterior >= 0) & (posterior <= 1)).all()


@pytest.mark.parametrize("values", [[0.0] * 5, [0.3], [0.0, 1.0], [0.0] * 9 + [1.0]])
def test_degenerate_losses_have_finite_answers(values: list[float]) -> None:
    posterior = gaussian_mixture.clean_probability(gaussian_mixture.scale_to_unit(torch.tensor(values)))

    assert torch.isfinite(posterior).all()
    assert bool(posterior[0] > posterior[-1]) == (values[0] < values[-1])


def test_losses_are_scaled_to_the_unit_interval() -> None:
    assert gaussian_mixture.scale_to_unit(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert gaussian_mixture.scale_to_unit(torch.full((3,), 7.0)).tolist() == [0.0] * 3
