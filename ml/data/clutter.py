"""How cluttered pictures are behind their objects: what decides whether a small mask can stand for the object.

It sees pixels alone - no label, no network - and is free of torch, since ingest measures it once for a data set.

Shapes: `N` images, `S` side; uint8 (N, S, S, 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE = 256  # images, evenly spread: their median is known to 0.01
SIDE = 32  # at which they are looked at
PLACES = 7  # of the mask's centre, across and down
SIGMA = 0.14  # of the mask, as a share of the side: the label-free localization module's kind of mask


def clutter(images: NDArray[np.uint8]) -> float:
    """Median share of an image's variance that the best-placed small Gaussian mask leaves outside, in [0, 1].

    Low where an object stands before an even background: 0.71 on generated scenes. Photographs have 0.85 and more.
    """
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), SAMPLE)).round().astype(int)]
    pixels = _reduced(np.asarray(chosen)).reshape(len(chosen), -1, 3).transpose(1, 0, 2).astype(np.float32) / 255
    flat = pixels.reshape(SIDE**2, -1)  # (S * S, N * 3)
    outside = 1 - _masks()  # (P, S * S)
    weights = (outside / outside.sum(axis=1, keepdims=True)).astype(np.float32)
    variances = weights @ flat**2 - (weights @ flat) ** 2  # (P, N * 3)
    left = variances.reshape(len(weights), -1, 3).sum(axis=2).min(axis=0)
    whole = flat.var(axis=0).reshape(-1, 3).sum(axis=1)
    return float(np.median(left / np.maximum(whole, 1e-9)).clip(0, 1))


def _reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """About SIDE pixels wide, by leaving out rows and columns."""
    selected = np.linspace(0, images.shape[1] - 1, SIDE).round().astype(int)
    return images[:, selected][:, :, selected]


def _masks() -> NDArray[np.float64]:
    """The mask at each of its places: (P, S * S)."""
    line = np.arange(SIDE)
    centres = (np.arange(PLACES) + 0.5) * SIDE / PLACES - 0.5
    across = np.exp(-((line - centres[:, None]) ** 2) / (2 * (SIGMA * SIDE) ** 2))  # (PLACES, S)
    masks: NDArray[np.float64] = (across[:, None, :, None] * across[None, :, None, :]).reshape(PLACES**2, SIDE**2)
    return masks
