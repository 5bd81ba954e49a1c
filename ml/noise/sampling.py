"""What all kinds of noise share: the result, and draws from probabilities. Knows no kind.

Shapes: `N` samples, `B` rows, `C` classes; labels int64 (N,).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]


class Noisy(NamedTuple):
    """Noisy labels and the share of them that really differ."""

    labels: Labels
    rate: float


def of(labels: Labels, noisy: Labels) -> Noisy:
    """Both together, counted."""
    return Noisy(noisy, float((labels != noisy).mean()) if len(labels) else 0.0)


def by_transition(labels: Labels, transition: Matrix, random: RandomState) -> Noisy:
    """One multinomial draw per sample, in index order: from RandomState(seed), the draws of the reference code.

    `transition` (C, C) has T[i, j] = P(given j | clean i); rows sum to 1.
    """
    noisy = np.empty_like(labels)
    for row, label in enumerate(labels):
        noisy[row] = random.multinomial(1, transition[label]).argmax()
    return of(labels, noisy)


def categorical(chances: Matrix, uniform: Matrix) -> Labels:
    """Inverse of the cumulative distribution, row by row: (B, C), (B,) in [0, 1) -> (B,)."""
    edges = chances.cumsum(axis=1)
    picks = (uniform[:, None] * edges[:, -1:] >= edges).sum(axis=1)
    return np.asarray(np.minimum(picks, chances.shape[1] - 1), dtype=np.int64)
