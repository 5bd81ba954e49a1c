"""Noise that depends on the single image, by random projections of its raw pixels.

Shapes: `N` samples, `F` = H * W * 3 pixels, `C` classes; labels int64 (N,), images uint8 (N, H, W, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from ml.noise.sampling import Labels, Matrix, Noisy, categorical, of

STD = 0.1  # spread of the rates of single images (Xia et al. 2020)
ROWS = 1024  # images projected at once


def dependent(
    labels: Labels, classes: int, images: NDArray[np.uint8], rate: float, seed: int, *, shared: bool = False
) -> Noisy:
    """Each image has its own rate, around `rate`, and its own alternative class.

    Part-dependent noise (Xia et al. 2020) has one projection (F, C) for every clean class; `shared`: a single one for
    all, as the released code of CORES (Cheng et al. 2021). Pixels are bytes, so that the softmax of their projection
    is all but one-hot: the alternative of an image is certain.
    """
    random = RandomState(seed)
    rates = _truncated_normal(random, len(labels), rate)
    features = int(np.prod(images.shape[1:]))
    noisy = labels.copy()
    uniform = random.random_sample(len(labels))
    projection = np.empty((0, 0), np.float32)
    for number in range(classes):
        if number == 0 or not shared:
            projection = random.standard_normal((features, classes)).astype(np.float32)
        members = np.flatnonzero(labels == number)
        for rows in np.array_split(members, max(1, len(members) // ROWS)):
            scores = (images[rows].reshape(len(rows), features).astype(np.float32) @ projection).astype(np.float64)
            scores[:, number] = -np.inf
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances = rates[rows, None] * odds / odds.sum(axis=1, keepdims=True)
            chances[:, number] += 1 - rates[rows]
            noisy[rows] = categorical(chances, uniform[rows])
    return of(labels, noisy)


def _truncated_normal(random: RandomState, count: int, mean: float) -> Matrix:
    """Normal(mean, STD) redrawn until it lies in [0, 1]."""
    values = random.normal(mean, STD, count)
    while (outside := (values < 0) | (values > 1)).any():
        values[outside] = random.normal(mean, STD, int(outside.sum()))
    return values
