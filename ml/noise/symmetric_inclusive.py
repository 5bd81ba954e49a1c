"""Symmetric noise, inclusive: a redrawn label may be the class itself."""

from __future__ import annotations

from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, counted

ABOUT: About = {
    "title": "Symmetric, inclusive",
    "summary": "Uniform redraws that may hit the same class: 50 % over 10 classes is 45 % wrong.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Exactly floor(rate * N) random samples are redrawn among all C classes: about rate * (1 - 1/C) end up wrong."""
    labels, random = parameters.labels, RandomState(parameters.seed)
    redrawn = random.permutation(len(labels))[: int(parameters.known_rate * len(labels))]
    noisy = labels.copy()
    noisy[redrawn] = random.randint(0, parameters.class_count, len(redrawn))
    return counted(labels, noisy)
