"""Reads batches of images in a thread, a few ahead of their use, in the order in which they will be used.

A batch that was not announced is read when it is asked for: announcements change how long it takes, never what comes.

Shapes: `B` rows of one batch, `S` side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

AHEAD = 4  # batches: reading one varies in time more than the step that uses it

Read = Callable[[Tensor, Tensor], None]
"""A function of rows int64 (B,) and of a buffer uint8 (B, S, S, 3), both on the CPU. It fills the buffer."""


class _Announced(NamedTuple):
    rows: Tensor
    pixels: Future[Tensor]


class ReadAhead:
    """Batches of one set of images."""

    def __init__(self, read: Read, side: int, *, pinned: bool) -> None:
        """Start no thread yet.

        Args:
            read: Fills a buffer; called by one thread, and by the caller's for batches that were not announced.
            side: S.
            pinned: Read into page-locked memory, from which a GPU copies while it computes.
        """
        self._read_into, self._side, self._pinned = read, side, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming: Iterator[Tensor] = iter(())
        self._announced: deque[_Announced] = deque()
        self._latest: tuple[Tensor, Tensor] | None = None  # rows and pixels

    def announce(self, batches: Iterable[Tensor]) -> None:
        """Say which batches come next, in their order; what was announced before is forgotten.

        Args:
            batches: Rows int64 (B,) on the CPU; consumed as they are needed.
        """
        for batch in self._announced:
            batch.pixels.cancel()
        self._announced.clear()
        self._coming = iter(batches)
        self._fill()

    def take(self, rows: Tensor) -> Tensor:
        """The images of one batch, read already if it was announced. They must not be changed.

        Several views of a batch are made one after the other: the latest batch is not read again.

        Args:
            rows: int64 (B,) on the CPU.

        Returns:
            uint8 (B, S, S, 3) on the CPU.

        Raises:
            OSError: The disk fails.
        """
        if self._latest is not None and torch.equal(self._latest[0], rows):
            return self._latest[1]
        if self._announced and torch.equal(self._announced[0].rows, rows):
            pixels = self._announced.popleft().pixels.result()
            self._fill()
        else:
            pixels = self._read(rows)
        self._latest = rows.clone(), pixels
        return pixels

    def _fill(self) -> None:
        while len(self._announced) < AHEAD and (rows := next(self._coming, None)) is not None:
            self._announced.append(_Announced(rows, self._thread.submit(self._read, rows)))

    def _read(self, rows: Tensor) -> Tensor:
        pixels = torch.empty((len(rows), self._side, self._side, 3), dtype=torch.uint8, pin_memory=self._pinned)
        self._read_into(rows, pixels)
        return pixels
