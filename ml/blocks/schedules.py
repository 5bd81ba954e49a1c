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


def ramp(elapsed: float, length: float) -> float:
    """From 0 up to 1 over `length`, linearly; 1 at once where there is no length."""
    return 1.0 if length <= 0 else min(1.0, max(0.0, elapsed / length))
