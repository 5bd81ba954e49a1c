"""Symmetric noise, exclusive: a flip never ends at the class itself."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, sample_transition

ABOUT: About = {
    "title": "Symmetric",
    "summary": "Uniform flips to any other class; the realised rate is the drawn one.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each label flips with probability `rate` to one of the C - 1 other classes, all equally likely."""
    classes, rate = parameters.class_count, parameters.known_rate
    transition = np.full((classes, classes), rate / (classes - 1))
    np.fill_diagonal(transition, 1 - rate)
    return sample_transition(parameters.labels, transition, RandomState(parameters.seed))
