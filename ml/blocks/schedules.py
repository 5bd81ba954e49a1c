"""Scalar schedules: progress in [0, 1) -> a factor. Pure functions; they know no optimiser and no epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

ROUNDING = 1e-9  # epoch 40 of 120 is not below a third


def cosine(progress: float, floor: float = 0.0) -> float:
    """From 1 down to `floor` along half a cosine."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(progress: float, milestones: Sequence[float], decay: float) -> float:
    """Times `decay` at each milestone, a share of the training."""
    return decay ** sum(progress >= milestone - ROUNDING for milestone in milestones)


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def by_name(name: str, *, milestones: Sequence[float], decay: float, floor: float) -> Callable[[float], float]:
    """The schedule that the training spec names."""
    match name:
        case "cosine":
            return lambda progress: cosine(progress, floor)
        case "multistep":
            return lambda progress: multistep(progress, milestones, decay)
        case "constant":
            return constant
    raise ValueError(f"no schedule is called {name!r}")


def linear_ramp(elapsed: float, length: float) -> float:
    """From 0 up to 1 over `length`, linearly; 1 at once where there is no length."""
    return 1.0 if length <= 0 else min(1.0, max(0.0, elapsed / length))


def gaussian_ramp(elapsed: float, length: float) -> float:
    """exp(-5 (1 - x)²) with x = elapsed / length up to 1: from 0.007 to 1, as Laine and Aila (ICLR 2017) do."""
    return math.exp(-5.0 * (1.0 - linear_ramp(elapsed, length)) ** 2)


def part_of_schedule(factor: Callable[[float], float], begin: float, end: float) -> Callable[[float], float]:
    """The stretch of a schedule between two shares of the training, as a schedule of its own.

    With it a phase that has its own optimisers goes on where the phase before it stood.
    """
    return lambda progress: factor(begin + progress * (end - begin))


def phase_lengths(epochs: int, shares: Sequence[float]) -> list[int]:
    """Epochs of consecutive phases by their shares, and what is left for the last one, which has no share: (len + 1).

    A phase with a share has an epoch at least, the last one too; too few epochs are taken from the longest phase, from
    the later of two, so that the first phase goes last.
    """
    found = [max(1, round(share * epochs)) if share > 0 else 0 for share in shares]
    while sum(found) >= epochs and sum(found) > 1:
        found[max(range(len(found)), key=lambda number: (found[number], number))] -= 1
    return [*found, epochs - sum(found)]
