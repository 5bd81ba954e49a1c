"""The probability that a given label is right, from what is known of its image and of the noise.

The evidence command `tests.evidence.probes` measures how well it ranks wrong labels.

Shapes: `N` images, `C` classes. Labels are int64 in [0, C).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNKNOWN_MISTAKES = 0.02  # share of labels that may be any class, whatever an estimated T says

Vector = NDArray[np.float64]


def posterior(labels: NDArray[np.int64], pred_probs: Vector, transition: Vector) -> Vector:
    """P(clean class | image, given label), (N, C): proportional to pred_probs times T's column of the given label.

    Mistakes that T does not know stay possible: `UNKNOWN_MISTAKES` of it are spread over all classes.

    Args:
        labels: Given labels (N,).
        pred_probs: Of clean classes, (N, C).
        transition: T (C, C), P(given label j | clean class i).
    """
    classes = pred_probs.shape[1]
    known = (1 - UNKNOWN_MISTAKES) * transition + UNKNOWN_MISTAKES / classes
    joint = pred_probs * known.T[labels]
    return np.asarray(joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300), dtype=np.float64)
