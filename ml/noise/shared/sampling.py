"""What the kinds of noise share: their parameters, their result, and draws from transition matrices.

Shapes: `N` samples, `B` rows, `C` classes; labels int64 (N,); transition matrix T float64 (C, C) with
T[i, j] = P(given label j | clean label i), rows summing to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]

BLOCK_SIZE = 5  # CIFAR-100's asymmetric noise stays in blocks of five consecutive classes (Forward, JoCoR, ELR, CDR)


class ImageRows(Protocol):
    """Images uint8 (N, H, W, 3): an array, or images in a file. They are taken by numbers int64 (B,)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, 3)."""
        ...

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Some images: int64 (B,) -> (B, H, W, 3)."""
        ...


@dataclass(frozen=True)
class Parameters:
    """The labels that noise is injected into, and what it is drawn by."""

    labels: Labels  # int64 (N,), in [0, C)
    class_names: Sequence[str]  # C
    images: ImageRows  # (N, H, W, 3); read only by kinds that depend on the image
    seed: int
    rate: float | None = None  # chance in [0, 1) that a label is drawn for noise
    matrix: Sequence[Sequence[float]] | None = None  # T, of the kind `transition`

    @property
    def class_count(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def known_rate(self) -> float:
        """`rate`, for the kinds whose ABOUT needs it; ValueError without one."""
        if self.rate is None:
            raise ValueError("this noise needs a rate")
        return self.rate


class NoisyLabels(NamedTuple):
    """Noisy labels int64 (N,), and the share of them that differ from the labels before, in [0, 1]."""

    labels: Labels
    rate: float


def counted(labels: Labels, noisy: Labels) -> NoisyLabels:
    """`noisy` with the share in which it differs from `labels`, both int64 (N,)."""
    return NoisyLabels(noisy, float((labels != noisy).mean()) if len(labels) else 0.0)


def sample_transition(labels: Labels, transition: Matrix, random: RandomState) -> NoisyLabels:
    """One multinomial draw per sample in index order, as the reference code of Forward and Co-teaching draws.

    Args:
        labels: int64 (N,).
        transition: T (C, C).
        random: `RandomState(seed)` repeats the draws of the reference code.
    """
    # Whether a class that cannot be drawn uses up a random number depends on the version of numpy: such classes are
    # left out. The last one is never decided by a number of its own.
    possible = [np.flatnonzero(np.append(row[:-1] > 0, True)) for row in transition]
    noisy = np.empty_like(labels)
    for row, label in enumerate(labels):
        classes = possible[label]
        noisy[row] = classes[random.multinomial(1, transition[label, classes]).argmax()]
    return counted(labels, noisy)


def flip_to(labels: Labels, target: Labels, rate: float, random: RandomState) -> NoisyLabels:
    """Class k becomes `target[k]`, int64 (C,), with probability `rate`; a class that is its own target stays."""
    classes = len(target)
    transition: Matrix = (1 - rate) * np.eye(classes)
    transition[np.arange(classes), target] += rate
    return sample_transition(labels, transition, random)


def class_blocks(classes: int) -> list[Labels]:
    """Consecutive class numbers in blocks of `BLOCK_SIZE`; the last block may be shorter."""
    return [np.arange(start, min(start + BLOCK_SIZE, classes)) for start in range(0, classes, BLOCK_SIZE)]


def next_in_block(classes: int) -> Labels:
    """int64 (C,): for each class the next one of its block, the first for the last.

    A block that would be a single class joins the block before it, so that every class (of two or more) has a target.
    """
    target = np.arange(classes)
    for block in class_blocks(classes):
        target[block] = np.roll(block, -1)
    if classes % BLOCK_SIZE == 1:
        target[classes - 2], target[classes - 1] = classes - 1, max(0, classes - BLOCK_SIZE - 1)
    return target


def sample_rows(probabilities: Matrix, uniform: Matrix) -> Labels:
    """One class per row, by the inverse of its cumulative distribution.

    Args:
        probabilities: (B, C), not necessarily normalised.
        uniform: (B,) in [0, 1).

    Returns:
        int64 (B,).
    """
    edges = probabilities.cumsum(axis=1)
    classes = (uniform[:, None] * edges[:, -1:] >= edges).sum(axis=1)
    return np.asarray(np.minimum(classes, probabilities.shape[1] - 1), dtype=np.int64)
