"""Laws of an epoch's timetable: who is shown how often, in which company, and that a copy shows the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from ml.method import Pass
from ml.training.sampler import EpochSampler, StepIndices

CPU = torch.device("cpu")


def drawn(*passes: Pass, batch_size: int = 8, seed: int = 0) -> EpochSampler:
    return EpochSampler.drawn(passes, batch_size, torch.Generator().manual_seed(seed), CPU)


def slots(timetable: EpochSampler) -> list[StepIndices]:
    return [timetable.slot(position) for position in range(timetable.steps)]


@given(
    labelled=some.integers(1, 70),
    unlabelled=some.integers(0, 70),
    batch_size=some.integers(2, 24),
    share=some.floats(0.05, 0.95),
)
@settings(deadline=None, max_examples=60)
def test_a_turn_shows_its_pool_once_and_fills_batches_with_others_none_twice(
    labelled: int, unlabelled: int, batch_size: int, share: float
) -> None:
    pool, others = torch.arange(labelled), torch.arange(labelled, labelled + unlabelled)
    shown = slots(drawn(Pass(pool, others, share), batch_size=batch_size))

    expected = [0, 0] if labelled == 1 else list(range(labelled))
    assert torch.cat([slot.labelled for slot in shown]).sort().values.tolist() == expected
    assert all(len(slot.labelled) >= 2 for slot in shown) or batch_size == 2
    assert all((slot.unlabelled is None) == (unlabelled == 0) for slot in shown)
    for slot in shown:
        if slot.unlabelled is not None and unlabelled > 1:
            assert 2 <= len(slot.unlabelled) == len(set(slot.unlabelled.tolist()))
            assert set(slot.unlabelled.tolist()) <= set(others.tolist())
            assert len(slot.unlabelled) <= max(2, round(share * batch_size))


def test_unlabelled_images_come_round_evenly_and_in_other_orders() -> None:
    shown = slots(drawn(Pass(torch.arange(40), torch.arange(40, 52))))
    seen = torch.cat([slot.unlabelled for slot in shown if slot.unlabelled is not None])

    assert len(shown) == 10
    assert [len(slot.labelled) for slot in shown] == [4] * 10
    assert torch.bincount(seen, minlength=52)[40:].tolist().count(3) >= 4
    assert seen[:12].sort().values.tolist() == seen[12:24].sort().values.tolist() == list(range(40, 52))
    assert seen[:12].tolist() != seen[12:24].tolist()


def test_turns_follow_each_other_and_each_counts_from_its_start() -> None:
    mask = torch.arange(20) < 12
    timetable = drawn(Pass(mask, ~mask), Pass(torch.arange(20)))
    shown = slots(timetable)

    assert [slot.pass_index for slot in shown] == [0] * 3 + [1] * 3
    assert [slot.passed for slot in shown] == [0, 1 / 3, 2 / 3] * 2
    assert timetable.labelled == 32


@pytest.mark.parametrize("batch_size", [3, 8, 64])
def test_a_restored_timetable_shows_the_same(batch_size: int) -> None:
    timetable = drawn(Pass(torch.arange(33), torch.arange(33, 40), 0.3), Pass(torch.arange(9)), batch_size=batch_size)
    again = EpochSampler.restored(timetable.state(), batch_size, CPU)

    assert again.steps == timetable.steps
    for one, two in zip(slots(timetable), slots(again), strict=True):
        assert (one.pass_index, one.passed, one.labelled.tolist()) == (
            two.pass_index,
            two.passed,
            two.labelled.tolist(),
        )
        assert (one.unlabelled is None and two.unlabelled is None) or torch.equal(one.unlabelled, two.unlabelled)  # type: ignore[arg-type]


def test_repeated_positions_are_shown_as_often() -> None:
    shown = slots(drawn(Pass(torch.arange(5).repeat(3))))

    assert torch.bincount(torch.cat([slot.labelled for slot in shown])).tolist() == [3] * 5


def test_an_empty_pool_is_said() -> None:
    assert drawn(Pass(torch.zeros(4, dtype=torch.bool))).is_empty
    assert not drawn(Pass(torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))).is_empty
