"""Makes batches of a set of images that does not fit into memory: its bytes are read while they are needed.

The views are those of a set in memory (`ml.data.image_store`), bit for bit.

Shapes: `N` images, `B` rows of one batch, `S` side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ml.data import read_ahead
from ml.data.image_store import ImageStore, ImageViews
from ml.data.stored_rows import Rows


class StreamedStore(ImageViews):
    """A set of N images on disk, or in the memory of the host while batches are needed on a GPU."""

    def __init__(self, source: Rows, mean: Tensor, std: Tensor, *, device: torch.device) -> None:
        """Read nothing yet.

        Args:
            source: The images, uint8 (N, S, S, 3).
            mean: Mean of each channel in [0, 1], (3,).
            std: Standard deviation of each channel, (3,).
            device: Where batches are needed.
        """
        super().__init__(int(source.shape[1]), mean, std, device)
        self._count = len(source)
        self._batches = read_ahead.of(source, device)

    def __len__(self) -> int:
        return self._count

    def raw(self, rows: Tensor) -> Tensor:
        """The stored bytes on the device: rows int64 (B,) -> uint8 (B, S, S, 3)."""
        return self._batches.take(rows.cpu()).to(self.device, non_blocking=True)

    def read_ahead(self, batches: Iterable[Tensor]) -> None:
        """Announce batches, which are read meanwhile; see `ml.data.input_store.InputStore.read_ahead`."""
        self._batches.announce(batches)


def pass_over(source: Rows, mean: Tensor, std: Tensor) -> ImageViews:
    """Images uint8 (N, S, S, 3) for passes over all of them on the CPU: streamed where they are in a file."""
    cpu = torch.device("cpu")
    if isinstance(source, Tensor):
        return ImageStore(source, mean, std, device=cpu, padded_bytes=0)
    return StreamedStore(source, mean, std, device=cpu)
