"""Noise toward the class that an image's background suggests: for any data set, without masks.

The background is taken to be the ring along the border. It is described by colours and edges, and a ridge classifier
learns the class from that description alone, each image judged by one that did not see it. A drawn label becomes the
class that the background suggests most, *among all classes*: where that is its own nothing changes, so what is wrong
afterwards agrees with its background, and the realised rate is below the drawn one by the share of backgrounds that
give the class away.

Shapes: `N` samples, `F` features of a ring, `C` classes; labels int64 (N,), images uint8 (N, H, W, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from ml.noise.sampling import Labels, Matrix, Noisy, of

RING = 6  # the ring is a sixth of the side wide on every side: just over half of the area
FOLDS = 5
RIDGE = 0.01  # of the variance of a feature
LEVELS = 3  # of each channel in the ring's histogram
ROWS = 2048  # images described at once


def by_background(labels: Labels, classes: int, images: NDArray[np.uint8], rate: float, seed: int) -> Noisy:
    """Each label is drawn with probability `rate`, and then is what the background suggests."""
    random = RandomState(seed)
    drawn = random.random_sample(len(labels)) < rate
    suggested = suggestions(rings(images), labels, classes, random)
    return of(labels, np.where(drawn, suggested, labels))


def suggestions(features: Matrix, labels: Labels, classes: int, random: RandomState) -> Labels:
    """int64 (N,): the class that features (N, F) suggest most, by a ridge regression on the other folds.

    Scores are taken relative to each class's own mean and spread, so that a frequent class is not everyone's answer;
    where features say nothing the answer is a random class.
    """
    spread = features.std(axis=0)
    plain = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    wanted = np.eye(classes)[labels]
    scores = np.zeros((len(labels), classes))
    for fold in np.array_split(random.permutation(len(labels)), FOLDS):
        seen = np.ones(len(labels), dtype=bool)
        seen[fold] = False
        x, y = plain[seen], wanted[seen] - wanted[seen].mean(axis=0)
        gram = x.T @ x + RIDGE * max(1, len(x)) * np.eye(x.shape[1])
        scores[fold] = plain[fold] @ np.linalg.solve(gram, x.T @ y)
    deviation = scores.std(axis=0)
    scores = (scores - scores.mean(axis=0)) / np.where(deviation > 1e-9, deviation, 1.0)
    return np.asarray((scores + 1e-6 * random.random_sample(scores.shape)).argmax(axis=1), dtype=np.int64)


def rings(images: NDArray[np.uint8]) -> Matrix:
    """(N, F): mean and spread of the colour of the eight parts of the border, a histogram of it, and its edges."""
    blocks = [_rings(images[start : start + ROWS]) for start in range(0, len(images), ROWS)]
    return np.concatenate(blocks) if blocks else np.zeros((0, 1))


def _rings(images: NDArray[np.uint8]) -> Matrix:
    count, height, width = images.shape[:3]
    up, side = max(1, height // RING), max(1, width // RING)
    rows = (slice(0, up), slice(up, height - up), slice(height - up, height))
    columns = (slice(0, side), slice(side, width - side), slice(width - side, width))
    tiles = [images[:, row, column] for row in rows for column in columns]
    del tiles[4]  # the middle of the picture
    parts = [tile.reshape(count, -1, 3).astype(np.float32) for tile in tiles if tile.shape[1] and tile.shape[2]]
    described = [np.concatenate([part.mean(axis=1), part.std(axis=1)], axis=1) for part in parts]
    edges = [_edges(tile) for tile in tiles]
    return np.concatenate([*described, *edges, _histogram(np.concatenate(parts, axis=1))], axis=1).astype(np.float64)


def _edges(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 2): mean steps between neighbours in brightness, down and across; 0 where there is no neighbour."""
    bright = tile.astype(np.float32).mean(axis=3)
    steps = (np.abs(np.diff(bright, axis=axis)).reshape(len(tile), -1) for axis in (1, 2))
    return np.stack([s.mean(axis=1) if s.shape[1] else np.zeros(len(tile), np.float32) for s in steps], axis=1)


def _histogram(ring: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, LEVELS ** 3): shares of coarse colours among the ring's pixels (N, P, 3)."""
    levels = (ring * (LEVELS / 256)).astype(np.int64)
    cells = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    cells += np.arange(len(ring))[:, None] * LEVELS**3
    counts = np.bincount(cells.ravel(), minlength=len(ring) * LEVELS**3).reshape(len(ring), -1)
    return np.asarray(counts / max(1, ring.shape[1]), dtype=np.float32)
