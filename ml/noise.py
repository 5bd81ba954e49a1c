"""Known noise for benchmarks and self-tests: labels in, noisy labels and the realised rate out. Seeded and pure.

Every generator draws from the labels it was given, never from labels it has already changed. It knows no data set
beyond class names and pixels.

Shapes: `N` samples, `C` classes; labels int64 (N,); transition matrix T (C, C) with T[i, j] = P(given j | clean i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]

BLOCK = 5  # CIFAR-100's asymmetric noise circles in blocks of five consecutive classes (Forward, JoCoR, ELR, CDR)
STD = 0.1  # spread of the rates of single images (Xia et al. 2020)
CIFAR10_FLIPS = {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


class Noisy(NamedTuple):
    """Noisy labels and how many of them really differ."""

    labels: Labels
    rate: float


def inject(
    kind: str, labels: Labels, class_names: Sequence[str], *, rate: float, images: NDArray[np.uint8], seed: int
) -> Noisy:
    """Noise of one kind as the training spec names it; `images` (N, H, W, 3) are only read by instance_dependent."""
    classes = len(class_names)
    if rate == 0.0:  # the spread of instance-dependent rates would flip some labels even so
        return Noisy(labels.copy(), 0.0)
    match kind:
        case "symmetric":
            return symmetric(labels, classes, rate, seed)
        case "symmetric_inclusive":
            return symmetric(labels, classes, rate, seed, inclusive=True)
        case "pairflip":
            return pairflip(labels, classes, rate, seed)
        case "asymmetric":
            return asymmetric(labels, class_names, rate, seed)
        case "instance_dependent":
            return instance_dependent(labels, classes, images, rate, seed)
    raise ValueError(f"no noise of kind {kind!r}")


def symmetric(labels: Labels, classes: int, rate: float, seed: int, *, inclusive: bool = False) -> Noisy:
    """Uniform flips. Exclusive: never to the class itself, by T.

    Inclusive: exactly floor(rate * N) random samples redraw among all classes, so about rate * (1 - 1/C) end up wrong.
    """
    if not inclusive:
        transition = np.full((classes, classes), rate / (classes - 1))
        np.fill_diagonal(transition, 1 - rate)
        return _draw(labels, transition, seed)
    random = RandomState(seed)
    chosen = random.permutation(len(labels))[: int(rate * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = random.randint(0, classes, len(chosen))
    return _noisy(labels, noisy)


def pairflip(labels: Labels, classes: int, rate: float, seed: int) -> Noisy:
    """Each class flips to its successor only."""
    successors = np.roll(np.eye(classes), 1, axis=1)
    return _draw(labels, (1 - rate) * np.eye(classes) + rate * successors, seed)


def asymmetric(labels: Labels, class_names: Sequence[str], rate: float, seed: int) -> Noisy:
    """Similar classes: on CIFAR-10, by class names, its five source classes; otherwise circles in blocks of five.

    On CIFAR-10 the overall rate is half of `rate`, because only half of the classes flip.
    """
    classes = len(class_names)
    numbers = {name: number for number, name in enumerate(class_names)}
    target = np.arange(classes)
    if set(CIFAR10_FLIPS) | set(CIFAR10_FLIPS.values()) <= set(numbers):
        for source, destination in CIFAR10_FLIPS.items():
            target[numbers[source]] = numbers[destination]
    else:
        for start in range(0, classes, BLOCK):
            block = np.arange(start, min(start + BLOCK, classes))
            target[block] = np.roll(block, -1)
        if classes % BLOCK == 1:  # the last block would be a class alone, which has nowhere to go
            target[classes - 2], target[classes - 1] = classes - 1, max(0, classes - BLOCK - 1)
    transition = (1 - rate) * np.eye(classes)
    transition[np.arange(classes), target] += rate
    return _draw(labels, transition, seed)


def instance_dependent(labels: Labels, classes: int, images: NDArray[np.uint8], rate: float, seed: int) -> Noisy:
    """Part-dependent noise of Xia et al. 2020: each image has its own rate and its own alternative.

    `images` are raw bytes (N, H, W, 3), flattened in this order; one projection (H*W*3, C) for every clean class.
    """
    random = RandomState(seed)
    rates = _truncated_normal(random, len(labels), rate)
    features = int(np.prod(images.shape[1:]))
    noisy = labels.copy()
    draws = random.random_sample(len(labels))
    for number in range(classes):
        projection = random.standard_normal((features, classes)).astype(np.float32)
        for rows in np.array_split(members := np.flatnonzero(labels == number), max(1, len(members) // 1024)):
            if len(rows) == 0:
                continue
            scores = (images[rows].reshape(len(rows), features).astype(np.float32) @ projection).astype(np.float64)
            scores[:, number] = -np.inf
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances = rates[rows, None] * odds / odds.sum(axis=1, keepdims=True)
            chances[:, number] += 1 - rates[rows]
            noisy[rows] = _categorical(chances, draws[rows])
    return _noisy(labels, noisy)


def _draw(labels: Labels, transition: Matrix, seed: int) -> Noisy:
    """One multinomial draw per sample, in index order, from RandomState(seed): the draws of the reference code."""
    random = RandomState(seed)
    noisy = np.empty_like(labels)
    for row, label in enumerate(labels):
        noisy[row] = random.multinomial(1, transition[label]).argmax()
    return _noisy(labels, noisy)


def _categorical(chances: Matrix, draws: Matrix) -> Labels:
    """Inverse of the cumulative distribution, row by row: (B, C), (B,) in [0, 1) -> (B,)."""
    edges = chances.cumsum(axis=1)
    picks = (draws[:, None] * edges[:, -1:] >= edges).sum(axis=1)
    return np.asarray(np.minimum(picks, chances.shape[1] - 1), dtype=np.int64)


def _truncated_normal(random: RandomState, count: int, mean: float) -> Matrix:
    """Normal(mean, STD) redrawn until it lies in [0, 1]."""
    values = random.normal(mean, STD, count)
    while (outside := (values < 0) | (values > 1)).any():
        values[outside] = random.normal(mean, STD, int(outside.sum()))
    return values


def _noisy(labels: Labels, noisy: Labels) -> Noisy:
    return Noisy(noisy, float((labels != noisy).mean()) if len(labels) else 0.0)
