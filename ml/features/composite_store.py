"""Makes batches of pictures and of their objects before the mean background, for networks that are trained whole.

Both are of one random view: the mask is cropped and mirrored with its picture, and b̄ stays in place (DeNLL, Eq. 4).

Shapes: `N` images, `B` rows of one batch, `S` side; pairs float (B, 6, S, S), the picture's channels first.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ml.blocks import localization
from ml.data.augmentation import Augmentation
from ml.data.image_store import ImageViews
from ml.features import composites


class CompositeStore:
    """Pairs of N images.

    Attributes:
        device: Where the images are.
    """

    def __init__(self, pictures: ImageViews, gaussians: Tensor, mean_background: Tensor) -> None:
        """Bind the parts.

        Args:
            pictures: The N images.
            gaussians: Of their objects, f32 (N, 3).
            mean_background: b̄, normalised like the pictures, (1, 3, S, S) on their device.
        """
        self.device = pictures.device
        self._pictures, self._mean_background = pictures, mean_background
        self._gaussians = gaussians.to(pictures.device)

    def __len__(self) -> int:
        return len(self._pictures)

    def unaugmented(self, rows: Tensor) -> Tensor:
        """Pairs without augmentation: rows int64 (B,) -> (B, 6, S, S)."""
        return self._pair(self._pictures.unaugmented(rows), self._masks(rows))

    def augmented(
        self, rows: Tensor, kind: Augmentation, generator: torch.Generator, *, strongly: bool = False
    ) -> Tensor:
        """A random view of each pair.

        Args:
            rows: int64 (B,).
            kind: What a view is.
            generator: Draws the views, on the store's device.
            strongly: Ignored: a strong view would move objects from under their masks.
        """
        return self._pair(*self._pictures.augmented_with_masks(rows, self._masks(rows), kind, generator))

    def backgrounds(self, rows: Tensor) -> Tensor:
        """What is left of each image without its object, not augmented: rows int64 (B,) -> (B, 3, S, S)."""
        pictures = self._pictures.unaugmented(rows)
        return composites.background_alone(pictures, self._gaussians[rows], self._mean_background)

    def raw(self, rows: Tensor) -> Tensor:
        """The pictures as stored bytes: rows int64 (B,) -> uint8 (B, S, S, 3)."""
        return self._pictures.raw(rows)

    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Announce batches to the store of the pictures."""
        self._pictures.read_ahead(batches)

    def eval_batch_size(self) -> int:
        """Images of a batch without gradients."""
        return max(2, self._pictures.eval_batch_size() // 2)

    def _masks(self, rows: Tensor) -> Tensor:
        return localization.gaussian_mask(self._gaussians[rows], self._pictures.side, self._pictures.side)

    def _pair(self, pictures: Tensor, masks: Tensor) -> Tensor:
        return torch.cat([pictures, composites.blend(pictures, masks, self._mean_background)], dim=1)
