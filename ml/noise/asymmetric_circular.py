"""Asymmetric noise in blocks of five consecutive classes (Patrini et al. 2017, for CIFAR-100)."""

from __future__ import annotations

from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, flip_to, next_in_block

ABOUT: About = {
    "title": "Asymmetric, circular",
    "summary": "Each class flips to the next of its block of five consecutive classes.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each class flips with probability `rate` to the next of its block, the last of the block to the first."""
    target = next_in_block(parameters.class_count)
    return flip_to(parameters.labels, target, parameters.known_rate, RandomState(parameters.seed))
