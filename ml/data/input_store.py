"""What a training needs of a set of images: batches of what its method sees.

`ml.data.image_store` and `ml.data.streamed_store` yield pictures; `ml.features.feature_store` yields what a frozen
backbone computes of them.

Shapes: `N` images, `B` rows of one batch, `S` side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Say which batches will be asked for next: a store on disk reads them meanwhile. What comes is the same.

        Args:
            batches: Rows int64 (B,) on the CPU, in their order. A store in memory never asks for them.
        """
        ...


def eval_batches(store: InputStore, rows: Tensor) -> Iterator[Tensor]:
    """Rows in batches for passes without gradients, which the store reads ahead.

    Args:
        store: That will be asked for these rows.
        rows: int64 (R,), anywhere.

    Returns:
        Rows int64 (B,) on the store's device.
    """
    size = store.eval_batch_size()

    def on_cpu() -> Iterator[Tensor]:  # copied only when a store asks for them
        yield from torch.split(rows.cpu(), size)

    store.read_ahead(on_cpu())
    return iter(torch.split(rows.to(store.device), size))
