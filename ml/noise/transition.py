"""Noise by a transition matrix that the request holds."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.errors import UnusableData
from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, sample_transition

ABOUT: About = {
    "title": "Transition matrix",
    "summary": "By a transition matrix that the request states.",
    "needs": "matrix",
    "row_sum_tolerance": 1e-3,
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each label is redrawn by its row of T; rows are scaled to a sum of exactly 1.

    UnusableData (noise_does_not_fit) unless the matrix has one row and one column a class.
    """
    matrix, classes = parameters.matrix or (), parameters.class_count
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        raise UnusableData(
            f"the transition matrix is not {classes} x {classes}, one row and one column a class",
            code="noise_does_not_fit",
        )
    transition = np.asarray(matrix, dtype=np.float64)
    transition /= transition.sum(axis=1, keepdims=True)
    return sample_transition(parameters.labels, transition, RandomState(parameters.seed))
