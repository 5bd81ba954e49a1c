"""Noise that depends on the class alone: a transition matrix, or uniform redraws. Sees no image.

Shapes: `N` samples, `C` classes; labels int64 (N,); transition matrix T (C, C) with T[i, j] = P(given j | clean i).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState

from ml.errors import UnusableData
from ml.noise import cifar
from ml.noise.sampling import Labels, Matrix, Noisy, by_transition, of

BLOCK = 5  # CIFAR-100's asymmetric noise circles in blocks of five consecutive classes (Forward, JoCoR, ELR, CDR)


def symmetric(labels: Labels, classes: int, rate: float, seed: int, *, inclusive: bool = False) -> Noisy:
    """Uniform flips. Exclusive: never to the class itself, by T.

    Inclusive: exactly floor(rate * N) random samples redraw among all classes, so about rate * (1 - 1/C) end up wrong.
    """
    random = RandomState(seed)
    if not inclusive:
        transition = np.full((classes, classes), rate / (classes - 1))
        np.fill_diagonal(transition, 1 - rate)
        return by_transition(labels, transition, random)
    chosen = random.permutation(len(labels))[: int(rate * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = random.randint(0, classes, len(chosen))
    return of(labels, noisy)


def pairflip(labels: Labels, classes: int, rate: float, seed: int) -> Noisy:
    """Each class flips to its successor only."""
    return _flipped(labels, np.roll(np.arange(classes), -1), rate, RandomState(seed))


def asymmetric(labels: Labels, class_names: Sequence[str], rate: float, seed: int) -> Noisy:
    """Similar classes: on CIFAR-10, by class names, its five source classes; otherwise circles in blocks of five.

    On CIFAR-10 the overall rate is half of `rate`, because only half of the classes flip.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    if not set(cifar.FLIPS) | set(cifar.FLIPS.values()) <= set(numbers):
        return circular(labels, len(class_names), rate, seed)
    target = np.arange(len(class_names))
    for source, destination in cifar.FLIPS.items():
        target[numbers[source]] = numbers[destination]
    return _flipped(labels, target, rate, RandomState(seed))


def circular(labels: Labels, classes: int, rate: float, seed: int) -> Noisy:
    """Each class flips to the next of its block of five consecutive classes (Patrini et al. 2017, for CIFAR-100)."""
    target = np.arange(classes)
    for block in _blocks(classes):
        target[block] = np.roll(block, -1)
    if classes % BLOCK == 1:  # the last block would be a class alone, which has nowhere to go
        target[classes - 2], target[classes - 1] = classes - 1, max(0, classes - BLOCK - 1)
    return _flipped(labels, target, rate, RandomState(seed))


def superclass(labels: Labels, class_names: Sequence[str], rate: float, seed: int) -> Noisy:
    """Each class of CIFAR-100 flips to the next of its super-class, as papers describe that noise.

    UnusableData (noise_does_not_fit) unless the class names are those of CIFAR-100, whatever their order.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    if set(numbers) != set(cifar.FINE):
        raise UnusableData(
            "asymmetric_superclass noise needs the class names of CIFAR-100",
            hint="asymmetric_circular flips within blocks of any five classes",
            code="noise_does_not_fit",
        )
    target = np.arange(len(class_names))
    for members in cifar.super_classes().values():
        block = [numbers[name] for name in members]
        target[block] = np.roll(block, -1)
    return _flipped(labels, target, rate, RandomState(seed))


def pairs(labels: Labels, classes: int, rate: float, seed: int) -> Noisy:
    """Two random classes of each block of five swap; the rest stay (released code of SOP, Liu et al. 2022).

    With whole blocks the overall rate is 0.4 of `rate`.
    """
    random = RandomState(seed)
    target = np.arange(classes)
    for block in _blocks(classes):
        if len(block) > 1:
            one, other = random.choice(block, 2, replace=False)
            target[one], target[other] = other, one
    return _flipped(labels, target, rate, random)


def transition(labels: Labels, classes: int, matrix: Sequence[Sequence[float]], seed: int) -> Noisy:
    """By a given T, its rows put to a sum of exactly 1; UnusableData (noise_does_not_fit) unless it is C x C."""
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        raise UnusableData(
            f"the transition matrix is not {classes} x {classes}, one row and one column a class",
            code="noise_does_not_fit",
        )
    given = np.asarray(matrix, dtype=np.float64)
    return by_transition(labels, given / given.sum(axis=1, keepdims=True), RandomState(seed))


def _blocks(classes: int) -> list[Labels]:
    return [np.arange(start, min(start + BLOCK, classes)) for start in range(0, classes, BLOCK)]


def _flipped(labels: Labels, target: Labels, rate: float, random: RandomState) -> Noisy:
    """Class k becomes target[k] with probability `rate`; a class that is its own target stays."""
    classes = len(target)
    matrix: Matrix = (1 - rate) * np.eye(classes)
    matrix[np.arange(classes), target] += rate
    return by_transition(labels, matrix, random)
