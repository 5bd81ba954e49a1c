"""What a training needs of a set of images: batches of what its method sees.

`ml.data.image_store` yields pictures; `ml.features.feature_store` yields what a frozen backbone computes of them.

Shapes: `N` images, `B` rows of one batch, `S` side.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ml.data.augmentation import Augmentation


class InputStore(Protocol):
    """A set of N images on a device; rows are int64 (B,)."""

    device: torch.device

    def __len__(self) -> int:
        """N."""
        ...

    def unaugmented(self, rows: Tensor) -> Tensor:
        """Without augmentation: float (B, ...)."""
        ...

    def augmented(
        self, rows: Tensor, kind: Augmentation, generator: torch.Generator, *, strongly: bool = False
    ) -> Tensor:
        """A random view of each image, (B, ...); see `ml.data.image_store.ImageStore.augmented`."""
        ...

    def raw(self, rows: Tensor) -> Tensor:
        """The images as stored bytes, uint8 (B, S, S, 3)."""
        ...

    def eval_batch_size(self) -> int:
        """Images of a batch without gradients."""
        ...
