"""Clutter: how varied images are outside a small mask, which decides whether such a mask can localise the object.

It is computed from pixels alone, without torch, once at ingest.

Shapes: `N` images, `S` side; uint8 (N, S, S, 3).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE = 256  # images, evenly spread: their median is known to 0.01
SIDE = 32  # pixels to which they are reduced
GRID = 7  # positions of the mask's centre along each axis
SIGMA = 0.14  # of the mask, as a share of the side: the label-free localization module's kind of mask


class Images(Protocol):
    """An array, or images in a file, which are taken by numbers int64 (B,)."""

    def __len__(self) -> int:
        """N."""
        ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """Some images: (B, S, S, 3)."""
        ...


def clutter(images: Images) -> float:
    """Median share of an image's variance outside the small Gaussian mask that covers most of it.

    Args:
        images: uint8 (N, S, S, 3), of which `SAMPLE` are read.

    Returns:
        A number in [0, 1]: 0.71 on generated scenes, whose objects stand before even backgrounds; 0.85 and more on
        photographs.
    """
    chosen = images[np.linspace(0, len(images) - 1, min(len(images), SAMPLE)).round().astype(int)]
    pixels = _reduced(chosen).reshape(len(chosen), -1, 3).transpose(1, 0, 2).astype(np.float32) / 255
    flat = pixels.reshape(SIDE**2, -1)  # (S * S, N * 3)
    outside = 1 - _masks()  # (P, S * S)
    weights = (outside / outside.sum(axis=1, keepdims=True)).astype(np.float32)
    variances = weights @ flat**2 - (weights @ flat) ** 2  # (P, N * 3)
    left = variances.reshape(len(weights), -1, 3).sum(axis=2).min(axis=0)
    whole = flat.var(axis=0).reshape(-1, 3).sum(axis=1)
    return float(np.median(left / np.maximum(whole, 1e-9)).clip(0, 1))


def _reduced(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """SIDE rows and columns of each image, evenly spread."""
    selected = np.linspace(0, images.shape[1] - 1, SIDE).round().astype(int)
    return images[:, selected][:, :, selected]


def _masks() -> NDArray[np.float64]:
    """The mask at each of the P = GRID * GRID positions: (P, S * S)."""
    line = np.arange(SIDE)
    centres = (np.arange(GRID) + 0.5) * SIDE / GRID - 0.5
    across = np.exp(-((line - centres[:, None]) ** 2) / (2 * (SIGMA * SIDE) ** 2))  # (GRID, S)
    masks: NDArray[np.float64] = (across[:, None, :, None] * across[None, :, None, :]).reshape(GRID**2, SIDE**2)
    return masks
