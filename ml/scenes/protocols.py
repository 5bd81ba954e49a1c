"""What scenes are made of: foregrounds and backgrounds, drawn or photographed.

Shapes: `S` side of an image in pixels; covers float64 (S, S) in [0, 1]; colours float64 (3,) or (S, S, 3) in [0, 255].
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Layer(NamedTuple):
    """A colour and how much it covers: where `cover` is 1 it replaces the pixel, where it is 0 it changes nothing."""

    cover: Floats  # (S, S) in [0, 1]
    colour: Floats  # (3,) or (S, S, 3) in [0, 255]


class Foregrounds(Protocol):
    """Objects by class."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        ...

    def split(self, held_out: float) -> tuple[Self, Self]:
        """One part for training and one for testing, with `held_out` the share of the second."""
        ...

    def layers(
        self, kind: int, centre: Floats, size: float, side: int, random: np.random.Generator
    ) -> tuple[Layer, ...]:
        """An object, from back to front; the first layer's cover is the object's mask.

        Args:
            kind: Number of its class.
            centre: x, y of its centre in pixels, (2,).
            size: Its longer side in pixels.
            side: S.
            random: Draws all that varies.
        """
        ...


class Backgrounds(Protocol):
    """Scenes by family."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the families."""
        ...

    def split(self, held_out: float) -> tuple[Self, Self]:
        """One part for training and one for testing, with `held_out` the share of the second."""
        ...

    def sample(self, number: int, side: int, random: np.random.Generator) -> Floats:
        """An image (S, S, 3) in [0, 255] of family `number`."""
        ...
