"""Reads batches of rows ahead of their use, in the order in which they will be used.

Where the rows are used on the CPU, the kernel reads them into its page cache while steps are computed, and what is left
for a batch is a copy: a thread would take turns with the training's own one for Python's lock. Before a GPU, a thread
copies them into page-locked memory.

A batch that was not announced is read when it is asked for: announcements change how long it takes, never what comes.

Shapes: `B` rows of one batch, `R` the shape of a row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

AHEAD = 4  # batches: reading one varies in time more than the step that uses it


class Source(Protocol):
    """Rows to read; see `ml.data.stored_rows.StoredRows`."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def announce(self, rows: Tensor) -> None:
        """Begin to read rows int64 (B,)."""
        ...

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        """Fill a buffer (B, *R) with rows int64 (B,), both on the CPU."""
        ...


class MemoryRows:
    """Rows (N, *R) in the memory of the host."""

    def __init__(self, values: Tensor) -> None:
        """Copy nothing."""
        self._values = values
        self.shape, self.dtype = tuple(values.shape), values.dtype

    def announce(self, rows: Tensor) -> None:
        """They are there."""

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        """Copy rows int64 (B,) into (B, *R)."""
        torch.index_select(self._values, 0, rows, out=out)


class _Announced(NamedTuple):
    rows: Tensor
    values: Future[Tensor] | None  # None where the kernel reads


class ReadAhead:
    """Batches of one set of rows."""

    def __init__(self, source: Source, *, in_thread: bool, pinned: bool = False) -> None:
        """Start no thread yet.

        Args:
            source: Of the rows; read by one thread, and by the caller's.
            in_thread: Copy announced batches in a thread.
            pinned: Read into page-locked memory, from which a GPU copies while it computes.
        """
        self._source, self._pinned = source, pinned
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if in_thread else None
        self._coming: Iterator[Tensor] = iter(())
        self._announced: deque[_Announced] = deque()
        self._latest: tuple[Tensor, Tensor] | None = None  # numbers of rows, and the rows

    def announce(self, batches: Iterable[Tensor]) -> None:
        """Say which batches come next, in their order; what was announced before is forgotten.

        Args:
            batches: Rows int64 (B,) on the CPU; consumed as they are needed.
        """
        for batch in self._announced:
            if batch.values is not None:
                batch.values.cancel()
        self._announced.clear()
        self._coming = iter(batches)
        self._fill()

    def take(self, rows: Tensor) -> Tensor:
        """The rows of one batch, read already if it was announced. They must not be changed.

        Several views of a batch are made one after the other: the latest batch is not read again.

        Args:
            rows: int64 (B,) on the CPU.

        Returns:
            (B, *R) on the CPU.

        Raises:
            OSError: The disk fails.
        """
        if self._latest is not None and torch.equal(self._latest[0], rows):
            return self._latest[1]
        if self._announced and torch.equal(self._announced[0].rows, rows):
            coming = self._announced.popleft().values
            values = self._read(rows, announced=True) if coming is None else coming.result()
            self._fill()
        else:
            values = self._read(rows, announced=False)
        self._latest = rows.clone(), values
        return values

    def _fill(self) -> None:
        while len(self._announced) < AHEAD and (rows := next(self._coming, None)) is not None:
            if self._thread is None:
                self._source.announce(rows)
                self._announced.append(_Announced(rows, None))
            else:
                self._announced.append(_Announced(rows, self._thread.submit(self._read, rows, announced=False)))

    def _read(self, rows: Tensor, *, announced: bool) -> Tensor:
        out = torch.empty((len(rows), *self._source.shape[1:]), dtype=self._source.dtype, pin_memory=self._pinned)
        self._source.read(rows, out, announced=announced)
        return out


def of(source: Source | Tensor, device: torch.device) -> ReadAhead:
    """Batches of rows that are needed on a device; as a tensor, the rows are in the memory of the host."""
    rows = MemoryRows(source) if isinstance(source, Tensor) else source
    is_cuda = device.type == "cuda"
    return ReadAhead(rows, in_thread=is_cuda, pinned=is_cuda)
