"""The order of an epoch: how often an image is shown, and with which others; a restored order is the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from ml.method import Pass
from ml.training.sampler import EpochSampler, StepIndices

CPU = torch.device("cpu")


def sampler(*passes: Pass, batch_size: int = 8, seed: int = 0) -> EpochSampler:
    return EpochSampler.draw(passes, batch_size, torch.Generator().manual_seed(seed), CPU)


def steps(sampler: EpochSampler) -> list[StepIndices]:
    return [sampler.at(step) for step in range(sampler.steps)]


@given(
    labelled=some.integers(1, 70),
    unlabelled=some.integers(0, 70),
    batch_size=some.integers(2, 24),
    share=some.floats(0.05, 0.95),
)
@settings(max_examples=60)
def test_a_pass_shows_its_pool_once_and_fills_batches_with_others_none_twice(
    labelled: int, unlabelled: int, batch_size: int, share: float
) -> None:
    pool, others = torch.arange(labelled), torch.arange(labelled, labelled + unlabelled)
    drawn_steps = steps(sampler(Pass(pool, others, share), batch_size=batch_size))

    expected = [0, 0] if labelled == 1 else list(range(labelled))
    assert torch.cat([step.labelled for step in drawn_steps]).sort().values.tolist() == expected
    assert all(len(step.labelled) >= 2 for step in drawn_steps) or batch_size == 2
    assert all((step.unlabelled is None) == (unlabelled == 0) for step in drawn_steps)
    for step in drawn_steps:
        if step.unlabelled is not None and unlabelled > 1:
            assert 2 <= len(step.unlabelled) == len(set(step.unlabelled.tolist()))
            assert set(step.unlabelled.tolist()) <= set(others.tolist())
            assert len(step.unlabelled) <= max(2, round(share * batch_size))


def test_unlabelled_images_come_round_evenly_and_in_other_orders() -> None:
    drawn_steps = steps(sampler(Pass(torch.arange(40), torch.arange(40, 52))))
    seen = torch.cat([step.unlabelled for step in drawn_steps if step.unlabelled is not None])

    assert len(drawn_steps) == 10
    assert [len(step.labelled) for step in drawn_steps] == [4] * 10
    assert torch.bincount(seen, minlength=52)[40:].tolist().count(3) >= 4
    assert seen[:12].sort().values.tolist() == seen[12:24].sort().values.tolist() == list(range(40, 52))
    assert seen[:12].tolist() != seen[12:24].tolist()


def test_passes_follow_each_other_and_each_counts_from_its_start() -> None:
    mask = torch.arange(20) < 12
    drawn = sampler(Pass(mask, ~mask), Pass(torch.arange(20)))
    drawn_steps = steps(drawn)

    assert [step.pass_index for step in drawn_steps] == [0] * 3 + [1] * 3
    assert [step.progress for step in drawn_steps] == [0, 1 / 3, 2 / 3] * 2
    assert drawn.labelled == 32


@pytest.mark.parametrize("batch_size", [3, 8, 64])
def test_a_restored_drawn_shows_the_same(batch_size: int) -> None:
    drawn = sampler(Pass(torch.arange(33), torch.arange(33, 40), 0.3), Pass(torch.arange(9)), batch_size=batch_size)
    again = EpochSampler.from_state(drawn.state(), batch_size, CPU)

    assert again.steps == drawn.steps
    for one, two in zip(steps(drawn), steps(again), strict=True):
        assert (one.pass_index, one.progress, one.labelled.tolist()) == (
            two.pass_index,
            two.progress,
            two.labelled.tolist(),
        )
        assert (one.unlabelled is None and two.unlabelled is None) or torch.equal(one.unlabelled, two.unlabelled)  # type: ignore[arg-type]


def test_repeated_positions_are_shown_as_often() -> None:
    drawn_steps = steps(sampler(Pass(torch.arange(5).repeat(3))))

    assert torch.bincount(torch.cat([step.labelled for step in drawn_steps])).tolist() == [3] * 5


def test_an_empty_pool_is_reported() -> None:
    assert sampler(Pass(torch.zeros(4, dtype=torch.bool))).is_empty
    assert not sampler(Pass(torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))).is_empty
