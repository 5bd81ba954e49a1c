"""Intervals and tests of paired predictions, against a bootstrap and by simulation."""

from __future__ import annotations

import random

import pytest

from app.jobs import paired
from app.jobs.paired import Paired


@pytest.mark.parametrize("counts", [Paired(500, 320, 40, 90), Paired(400, 380, 8, 2), Paired(300, 20, 100, 110)])
def test_the_interval_is_close_to_that_of_a_paired_bootstrap(counts: Paired) -> None:
    draw = random.Random(3)
    outcomes = [0] * (counts.n - counts.first - counts.second) + [-1] * counts.first + [1] * counts.second
    means = sorted(sum(draw.choices(outcomes, k=counts.n)) / counts.n for _ in range(2000))
    low, high = paired.interval(counts)
    assert low < paired.difference(counts) < high
    assert (low, high) == pytest.approx((means[50], means[-51]), abs=0.012)


def test_the_interval_of_equal_predictors_is_not_empty() -> None:
    low, high = paired.interval(Paired(50, 50, 0, 0))
    assert -0.1 < low < 0 < high < 0.1
    assert paired.wilson(50, 50) == pytest.approx((1 / (1 + paired.Z**2 / 50), 1.0))


def test_swapping_the_two_mirrors_the_interval() -> None:
    low, high = paired.interval(Paired(200, 120, 30, 15))
    assert paired.interval(Paired(200, 120, 15, 30)) == pytest.approx((-high, -low))


def test_the_interval_holds_the_true_difference_in_about_95_of_100_samples() -> None:
    draw = random.Random(7)
    kinds, weights = ("both", "first", "second", "neither"), (0.6, 0.08, 0.14, 0.18)
    held = 0
    for _ in range(1000):
        sample = draw.choices(kinds, weights, k=120)
        counts = Paired(120, sample.count("both"), sample.count("first"), sample.count("second"))
        low, high = paired.interval(counts)
        held += low <= 0.14 - 0.08 <= high
    assert 930 <= held <= 985


def test_mcnemar_counts_only_images_that_one_alone_has_right() -> None:
    assert paired.mcnemar(Paired(50, 40, 0, 0)) == 1.0
    assert paired.mcnemar(Paired(50, 40, 1, 9)) == pytest.approx(2 * (1 + 10) / 2**10)
    assert paired.mcnemar(Paired(9000, 0, 450, 550)) == pytest.approx(0.00173, abs=2e-4)
    assert paired.mcnemar(Paired(9000, 0, 950, 1050)) == pytest.approx(0.0268, abs=5e-4)  # by the normal distribution
