"""Holds what a network's frozen part computed of a set of images, and makes batches of it like an image store.

Augmentation in pixels is over once features are computed; feature maps are still mirrored.

Shapes: `N` images, `B` rows of one batch; features float (B, D), feature maps (B, D, h, w).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ml.data import read_ahead
from ml.data.augmentation import Augmentation
from ml.data.image_store import ImageViews
from ml.data.read_ahead import ReadAhead
from ml.data.stored_rows import Rows, in_memory

EVAL_VALUES = 1 << 24  # values of one batch without gradients


class FeatureStore:
    """Features of N images.

    Attributes:
        device: Where batches are needed.
    """

    def __init__(
        self,
        parts: Sequence[Rows],
        pictures: ImageViews,
        *,
        device: torch.device,
        positions: Tensor | None = None,
        streamed: bool = False,
    ) -> None:
        """Bind features and the images they were computed of.

        Args:
            parts: float16 (W, D) or (W, D, h, w) each; a batch has them side by side on axis 1.
            pictures: The W images.
            device: Where batches are needed.
            positions: Those of the N images, int64 (N,); None for all.
            streamed: Read them while they are needed; else they are mapped on a CPU, and copied to a GPU.
        """
        self.device = device
        self._positions = None if positions is None else positions.to(device)
        self._parts: list[Tensor | ReadAhead] = [
            read_ahead.of(part, device) if streamed else in_memory(part).to(device) for part in parts
        ]
        self._row_values = sum(math.prod(part.shape[1:]) for part in parts)
        self._pictures = pictures

    def __len__(self) -> int:
        return len(self._pictures) if self._positions is None else len(self._positions)

    def unaugmented(self, rows: Tensor) -> Tensor:
        """Features without augmentation: rows int64 (B,) -> f32 (B, ...)."""
        at = self._position_of(rows)
        return torch.cat([self._take(part, at).float() for part in self._parts], dim=1)  # autocast joins no float16

    def augmented(
        self, rows: Tensor, kind: Augmentation, generator: torch.Generator, *, strongly: bool = False
    ) -> Tensor:
        """A random view of each image: maps are mirrored at random unless the geometry is "none".

        Args:
            rows: int64 (B,).
            kind: What a view of the images would be.
            generator: Draws the views, on the store's device.
            strongly: There is no stronger view of features; ignored.
        """
        features = self.unaugmented(rows)
        if features.dim() < 4 or kind.geometry == "none":
            return features
        mirrored = torch.randint(0, 2, (len(rows), 1, 1, 1), generator=generator, device=self.device).bool()
        return torch.where(mirrored, features.flip(3), features).contiguous(memory_format=torch.channels_last)

    def raw(self, rows: Tensor) -> Tensor:
        """The images as stored bytes: rows int64 (B,) -> uint8 (B, S, S, 3)."""
        return self._pictures.raw(self._position_of(rows).cpu())

    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Announce batches to the files of streamed features; see `ml.data.input_store.InputStore.read_ahead`."""
        streamed = [part for part in self._parts if isinstance(part, ReadAhead)]
        of_images = (self._position_of(rows.to(self.device)).cpu() for rows in batches)
        for part, coming in zip(streamed, itertools.tee(of_images, len(streamed)), strict=True):
            part.announce(coming)

    def eval_batch_size(self) -> int:
        """Images of a batch without gradients."""
        return max(2, EVAL_VALUES // self._row_values)

    def _take(self, part: Tensor | ReadAhead, at: Tensor) -> Tensor:
        return part[at] if isinstance(part, Tensor) else part.take(at.cpu()).to(self.device, non_blocking=True)

    def _position_of(self, rows: Tensor) -> Tensor:
        return rows if self._positions is None else self._positions[rows]
