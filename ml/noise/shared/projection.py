"""Instance-dependent noise (Xia et al. 2020): what its two kinds share.

Shapes: `N` samples, `F` = H * W * 3 pixels, `C` classes; labels int64 (N,), images uint8 (N, H, W, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.noise.shared.sampling import Labels, Matrix, NoisyLabels, Parameters, counted, sample_rows

RATE_STD = 0.1  # standard deviation of the rates of single images (Xia et al. 2020)
CHUNK = 1024  # images projected at a time


def flip_by_projection(parameters: Parameters, *, shared: bool) -> NoisyLabels:
    """Each image flips at its own rate, around `rate`, to its own wrong class, chosen by a random projection.

    Pixels are bytes, so the softmax of their projection is almost one-hot: the wrong class of an image is certain.

    Args:
        parameters: `rate` is the mean of the images' rates, before they are cut to [0, 1].
        shared: One projection (F, C) for all clean classes, instead of one for each.
    """
    labels, images, classes = parameters.labels, parameters.images, parameters.class_count
    random = RandomState(parameters.seed)
    rates = _truncated_normal(random, len(labels), parameters.known_rate)
    features = int(np.prod(images.shape[1:]))
    noisy: Labels = labels.copy()
    uniform = random.random_sample(len(labels))
    projection = np.empty((0, 0), np.float32)
    for number in range(classes):
        if number == 0 or not shared:
            projection = random.standard_normal((features, classes)).astype(np.float32)
        members = np.flatnonzero(labels == number)
        for rows in np.array_split(members, max(1, len(members) // CHUNK)):
            scores = (images[rows].reshape(len(rows), features).astype(np.float32) @ projection).astype(np.float64)
            scores[:, number] = -np.inf  # the wrong class is never the image's own
            odds = np.exp(scores - scores.max(axis=1, keepdims=True))
            probabilities = rates[rows, None] * odds / odds.sum(axis=1, keepdims=True)
            probabilities[:, number] += 1 - rates[rows]
            noisy[rows] = sample_rows(probabilities, uniform[rows])
    return counted(labels, noisy)


def _truncated_normal(random: RandomState, count: int, mean: float) -> Matrix:
    """Normal(mean, RATE_STD) redrawn until it lies in [0, 1]."""
    values = random.normal(mean, RATE_STD, count)
    while (outside := (values < 0) | (values > 1)).any():
        values[outside] = random.normal(mean, RATE_STD, int(outside.sum()))
    return values
