"""Noise toward the class that an image's background suggests: for any data set, without masks.

The ring along the border is taken for the background. A ridge classifier learns the class from the ring's colours and
edges; each image is classified by a model that did not see it. A drawn label becomes the class that the background
suggests, *among all classes*. Where that is the image's own class nothing changes, so the realised rate is below the
drawn one by the share of backgrounds that suggest the right class.

Shapes: `N` samples, `F` features of a ring, `C` classes; labels int64 (N,), images uint8 (N, H, W, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from ml.noise import About
from ml.noise.shared.sampling import ImageRows, Labels, Matrix, NoisyLabels, Parameters, counted

ABOUT: About = {
    "title": "Confounded",
    "summary": "Drawn labels become the class that the image's background suggests, which a linear classifier of "
    "the border has learned; where that is the image's own class it stays.",
    "needs": "rate",
}

RING_SHARE = 6  # the ring is a sixth of the side wide on every side: just over half of the area
FOLDS = 5
RIDGE = 0.01  # ridge penalty, in units of a feature's variance
LEVELS = 3  # of each colour channel in the ring's histogram
CHUNK = 2048  # images described at a time


def inject(parameters: Parameters) -> NoisyLabels:
    """Each label is drawn with probability `rate`, and then becomes the class that the background suggests."""
    labels, random = parameters.labels, RandomState(parameters.seed)
    drawn = random.random_sample(len(labels)) < parameters.known_rate
    suggested = suggest_classes(ring_features(parameters.images), labels, parameters.class_count, random)
    return counted(labels, np.where(drawn, suggested, labels))


def suggest_classes(features: Matrix, labels: Labels, classes: int, random: RandomState) -> Labels:
    """The class that each image's features suggest, by a ridge regression on the images of the other folds.

    Scores are standardised within each class, so that a frequent class is not suggested for everyone. Where the
    features hold no information the suggestion is a random class.

    Args:
        features: float64 (N, F).
        labels: int64 (N,).
        classes: C.
        random: Draws the folds and breaks ties.

    Returns:
        int64 (N,).
    """
    deviation = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    one_hot = np.eye(classes)[labels]
    scores = np.zeros((len(labels), classes))
    # Each fold is scored by the regression on all the others.
    for fold in np.array_split(random.permutation(len(labels)), FOLDS):
        others = np.ones(len(labels), dtype=bool)
        others[fold] = False
        x, y = standard[others], one_hot[others] - one_hot[others].mean(axis=0)
        gram = x.T @ x + RIDGE * max(1, len(x)) * np.eye(x.shape[1])
        scores[fold] = standard[fold] @ np.linalg.solve(gram, x.T @ y)
    deviation = scores.std(axis=0)
    scores = (scores - scores.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
    return np.asarray((scores + 1e-6 * random.random_sample(scores.shape)).argmax(axis=1), dtype=np.int64)


def ring_features(images: ImageRows) -> Matrix:
    """float64 (N, F): mean and deviation of the colours of the border's eight tiles, edges, and a colour histogram."""
    starts = range(0, len(images), CHUNK)
    chunks = [_ring_features(images[np.arange(start, min(start + CHUNK, len(images)))]) for start in starts]
    return np.concatenate(chunks) if chunks else np.zeros((0, 1))


def _ring_features(images: NDArray[np.uint8]) -> Matrix:
    count, height, width = images.shape[:3]
    ring_height, ring_width = max(1, height // RING_SHARE), max(1, width // RING_SHARE)
    rows = (slice(0, ring_height), slice(ring_height, height - ring_height), slice(height - ring_height, height))
    columns = (slice(0, ring_width), slice(ring_width, width - ring_width), slice(width - ring_width, width))
    tiles = [images[:, row, column] for row in rows for column in columns]
    del tiles[4]  # the middle of the image
    parts = [tile.reshape(count, -1, 3).astype(np.float32) for tile in tiles if tile.shape[1] and tile.shape[2]]
    colours = [np.concatenate([part.mean(axis=1), part.std(axis=1)], axis=1) for part in parts]
    edges = [_edges(tile) for tile in tiles]
    return np.concatenate([*colours, *edges, _histogram(np.concatenate(parts, axis=1))], axis=1).astype(np.float64)


def _edges(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 2): mean brightness step between neighbours, down and across; 0 where there is no neighbour."""
    bright = tile.astype(np.float32).mean(axis=3)
    steps = (np.abs(np.diff(bright, axis=axis)).reshape(len(tile), -1) for axis in (1, 2))
    return np.stack([s.mean(axis=1) if s.shape[1] else np.zeros(len(tile), np.float32) for s in steps], axis=1)


def _histogram(border: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, LEVELS ** 3): shares of coarse colours among the border's pixels (N, P, 3)."""
    levels = (border * (LEVELS / 256)).astype(np.int64)
    cells = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    cells += np.arange(len(border))[:, None] * LEVELS**3
    counts = np.bincount(cells.ravel(), minlength=len(border) * LEVELS**3).reshape(len(border), -1)
    return np.asarray(counts / max(1, border.shape[1]), dtype=np.float32)
