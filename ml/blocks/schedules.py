"""Scalar schedules: progress in [0, 1) -> a factor. Pure functions; they know no optimiser and no epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

MILESTONES = (0.5, 0.75)  # the shares of the training at which "multistep" decays; CIFAR-N drops once at 0.6
DECAY = 0.1


def cosine(progress: float) -> float:
    """From 1 down to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def multistep(progress: float) -> float:
    """Times `DECAY` at each milestone."""
    return DECAY ** sum(progress >= milestone for milestone in MILESTONES)


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


BY_NAME: dict[str, Callable[[float], float]] = {"cosine": cosine, "multistep": multistep, "constant": constant}


def ramp(elapsed: float, length: float) -> float:
    """From 0 up to 1 over `length`, linearly; 1 at once where there is no length."""
    return 1.0 if length <= 0 else min(1.0, max(0.0, elapsed / length))
