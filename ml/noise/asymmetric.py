"""Asymmetric noise as papers inject it into CIFAR-10; other data sets get `asymmetric_circular`."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared import cifar_classes
from ml.noise.shared.sampling import NoisyLabels, Parameters, flip_to, next_in_block

ABOUT: About = {
    "title": "Asymmetric",
    "summary": "Similar classes: truck to automobile, bird to airplane, deer to horse, cat and dog; other class "
    "names in circles of five.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """On the class names of CIFAR-10 five classes flip with probability `rate`; otherwise to the next of the block.

    On CIFAR-10 the realised rate is half of `rate`, because half of the classes flip (Patrini et al. 2017).
    """
    labels, classes = parameters.labels, parameters.class_count
    numbers = {name: number for number, name in enumerate(parameters.class_names)}
    if set(cifar_classes.FLIPS) | set(cifar_classes.FLIPS.values()) <= set(numbers):
        target = np.arange(classes)
        for source, destination in cifar_classes.FLIPS.items():
            target[numbers[source]] = numbers[destination]
    else:
        target = next_in_block(classes)
    return flip_to(labels, target, parameters.known_rate, RandomState(parameters.seed))
