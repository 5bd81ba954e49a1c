"""Pairflip noise (Han et al. 2018, Co-teaching)."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, flip_to

ABOUT: About = {
    "title": "Pairflip",
    "summary": "Each class flips to its successor only.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Class k becomes k + 1 with probability `rate`, the last class the first."""
    successors = np.roll(np.arange(parameters.class_count), -1)
    return flip_to(parameters.labels, successors, parameters.known_rate, RandomState(parameters.seed))
