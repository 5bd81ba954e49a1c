"""Asymmetric noise inside the super-classes of CIFAR-100, as papers describe it."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.errors import UnusableData
from ml.noise import About
from ml.noise.shared import cifar_classes
from ml.noise.shared.sampling import NoisyLabels, Parameters, flip_to

ABOUT: About = {
    "title": "Asymmetric, within super-classes",
    "summary": "Each class flips to the next of its super-class; for the class names of CIFAR-100.",
    "needs": "rate",
    "classes": len(cifar_classes.FINE),
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each class flips with probability `rate` to the next of the five of its super-class, in alphabetical order.

    UnusableData (noise_does_not_fit) unless the class names are those of CIFAR-100, whatever their order.
    """
    numbers = {name: number for number, name in enumerate(parameters.class_names)}
    if set(numbers) != set(cifar_classes.FINE):
        raise UnusableData(
            "asymmetric_superclass noise needs the class names of CIFAR-100",
            hint="asymmetric_circular flips within blocks of any five classes",
            code="noise_does_not_fit",
        )
    target = np.arange(parameters.class_count)
    for members in cifar_classes.super_classes().values():
        block = [numbers[name] for name in members]
        target[block] = np.roll(block, -1)
    return flip_to(parameters.labels, target, parameters.known_rate, RandomState(parameters.seed))
