"""The largest assignment, beside a search over all permutations."""

from __future__ import annotations

import itertools

import pytest
import torch

from ml.features.assignment import best_assignment


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(8))
def test_no_permutation_has_a_larger_sum(count: int, seed: int) -> None:
    values = torch.randn(count, count, generator=torch.Generator().manual_seed(seed))
    order = best_assignment(values)

    best = max(sum(values[row, column] for row, column in enumerate(p)) for p in itertools.permutations(range(count)))
    assert sorted(order.tolist()) == list(range(count))
    assert float(values[torch.arange(count), order].sum()) == pytest.approx(float(best))


def test_equal_values_are_assigned() -> None:
    assert sorted(best_assignment(torch.zeros(5, 5)).tolist()) == list(range(5))


def test_a_large_diagonal_is_the_assignment() -> None:
    values = torch.rand(200, 200, generator=torch.Generator().manual_seed(0)) + 2 * torch.eye(200)

    assert best_assignment(values).tolist() == list(range(200))
