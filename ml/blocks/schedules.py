"""Scalar schedules: functions of the progress in [0, 1) that return a factor, and the lengths of phases."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

ROUNDING = 1e-9  # epoch 40 of 120 is not below a third


def cosine(progress: float, floor: float = 0.0) -> float:
    """From 1 down to `floor` along half a cosine, by the progress in [0, 1)."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(progress: float, milestones: Sequence[float], decay: float) -> float:
    """From 1, multiplied by `decay` at each of the `milestones`, which are shares of the training in (0, 1)."""
    return decay ** sum(progress >= milestone - ROUNDING for milestone in milestones)


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def by_name(name: str, *, milestones: Sequence[float], decay: float, floor: float) -> Callable[[float], float]:
    """The schedule that a training spec names.

    Args:
        name: cosine, multistep or constant.
        milestones: of multistep, shares of the training.
        decay: of multistep, the factor at each milestone.
        floor: of cosine, its last value.

    Raises:
        ValueError: for another name.
    """
    match name:
        case "cosine":
            return lambda progress: cosine(progress, floor)
        case "multistep":
            return lambda progress: multistep(progress, milestones, decay)
        case "constant":
            return constant
    raise ValueError(f"no schedule is called {name!r}")


def linear_ramp(elapsed: float, length: float) -> float:
    """`elapsed` / `length`, cut to [0, 1], both in one unit; always 1 if the length is 0."""
    return 1.0 if length <= 0 else min(1.0, max(0.0, elapsed / length))


def gaussian_ramp(elapsed: float, length: float) -> float:
    """exp(-5 (1 - x)²) with x = elapsed / length up to 1: from 0.007 to 1 (Laine and Aila, ICLR 2017)."""
    return math.exp(-5.0 * (1.0 - linear_ramp(elapsed, length)) ** 2)


def part_of_schedule(factor: Callable[[float], float], begin: float, end: float) -> Callable[[float], float]:
    """The part of the schedule `factor` from share `begin` to share `end` of the training, as a schedule of its own.

    With it a phase that has its own optimisers continues where the phase before it stopped.
    """
    return lambda progress: factor(begin + progress * (end - begin))


def phase_lengths(epochs: int, shares: Sequence[float]) -> list[int]:
    """Epochs of consecutive phases.

    A phase whose share is above 0 has at least one epoch, and so has the last one. If there are too few epochs, they
    are taken from the longest phase, of equally long ones from the later, so that the first phase loses its epoch last.

    Args:
        epochs: of the training.
        shares: of each phase but the last, which has what is left.

    Returns:
        Epochs of each phase, len(shares) + 1 of them, which sum to `epochs`.
    """
    lengths = [max(1, round(share * epochs)) if share > 0 else 0 for share in shares]
    while sum(lengths) >= epochs and sum(lengths) > 1:
        lengths[max(range(len(lengths)), key=lambda number: (lengths[number], number))] -= 1
    return [*lengths, epochs - sum(lengths)]
