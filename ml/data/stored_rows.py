"""Rows of numbers in a file, such as the images or features of a data set: read by numbers, or mapped into memory.

Shapes: `N` rows, `B` some of them, `R` the shape of a row, of images (S, S, 3).
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 1 << 17  # bytes that a kernel surely reads ahead for one announcement: its least window


class _Handle:
    """A file descriptor, closed when nobody needs it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class StoredRows:
    """N rows one after the other in an open file, which must not change; or some of them, in any order.

    Attributes:
        shape: (N, *R).
        dtype: Of the numbers.
        nbytes: Of all N rows.
    """

    def __init__(
        self,
        handle: _Handle,
        offset: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        positions: Tensor | None = None,
    ) -> None:
        """Use `open`, `write_unnamed`, `part` or `select`.

        Args:
            handle: Of the file.
            offset: Bytes before the first row.
            shape: (N, *R).
            dtype: As numpy calls it.
            positions: The row of the file that each of the N is, int64 (N,); None: they lie in this order.
        """
        self.shape = shape
        self.dtype: torch.dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        self._numpy_dtype = dtype
        self._row_bytes = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        self.nbytes = shape[0] * self._row_bytes
        self._handle, self._offset, self._positions = handle, offset, positions

    @classmethod
    def open(cls, path: Path) -> Self:
        """The rows of a .npy file in C order.

        Raises:
            ValueError: It is another kind of file.
        """
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if is_fortran or not shape:
                raise ValueError(f"{path} does not hold its rows one after the other")
            return cls(_Handle(os.dup(file.fileno())), file.seek(0, os.SEEK_CUR), tuple(shape), dtype)

    @classmethod
    def write_unnamed(cls, squares: Iterable[NDArray[np.uint8]], side: int, folder: Path | None) -> Self:
        """Write images to a file without a name: its disk space is free again when nobody needs it.

        Args:
            squares: Parts of the images, uint8 (B, S, S, 3).
            side: S.
            folder: On whose disk the file lies; None takes the system's folder for temporary files.
        """
        count = 0
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in squares:
                file.write(np.ascontiguousarray(part).data)
                count += len(part)
            file.flush()
            return cls(_Handle(os.dup(file.fileno())), 0, (count, side, side, 3), np.dtype(np.uint8))

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, stop: int) -> Self:
        """The rows `start` to `stop` - 1."""
        shape = (stop - start, *self.shape[1:])
        if self._positions is not None:
            return type(self)(self._handle, self._offset, shape, self._numpy_dtype, self._positions[start:stop])
        return type(self)(self._handle, self._offset + start * self._row_bytes, shape, self._numpy_dtype)

    def select(self, rows: Tensor) -> Self:
        """Some rows, int64 (B,), in their order; nothing is read or copied."""
        positions = rows.cpu() if self._positions is None else self._positions[rows.cpu()]
        return type(self)(self._handle, self._offset, (len(rows), *self.shape[1:]), self._numpy_dtype, positions)

    def in_memory(self) -> Tensor:
        """All rows: mapped, so that they are read from disk when they are touched; selected ones are read now."""
        if self._positions is not None or not self.nbytes:
            return self[torch.arange(len(self))]
        # Copy on write: torch wants memory it may write to, the file must never change.
        whole = mmap.mmap(self._handle.number, 0, access=mmap.ACCESS_COPY)
        values = np.frombuffer(whole, self._numpy_dtype, self.nbytes // self._numpy_dtype.itemsize, self._offset)
        return torch.from_numpy(values.reshape(self.shape))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some rows, read as by `read`: int64 (B,) -> (B, *R)."""
        out = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        self.read(rows, out)
        return out

    def announce(self, rows: Tensor) -> None:
        """Let the kernel read some rows into its page cache, all at the same time, while something else is done.

        Args:
            rows: int64 (B,) on the CPU.

        Raises:
            IndexError: There is no such row.
        """
        for begin, end in self._ranges(rows):
            for start in range(begin, end, PIECE):
                os.posix_fadvise(self._handle.number, start, min(PIECE, end - start), os.POSIX_FADV_WILLNEED)

    def read(self, rows: Tensor, out: Tensor, *, announced: bool = False) -> None:
        """Read some rows. All reads are announced first, so that a disk can work on many at a time.

        Args:
            rows: int64 (B,) on the CPU; consecutive ones are read at once.
            out: (B, *R), contiguous, on the CPU; overwritten.
            announced: They have been announced already.

        Raises:
            IndexError: There is no such row.
            OSError: The disk or the file fails.
        """
        if not announced:
            self.announce(rows)
        target, handle, done = out.numpy().reshape(-1).view(np.uint8).data, self._handle.number, 0
        for begin, end in self._ranges(rows):
            first = done
            while (at := begin + done - first) < end:
                count = os.preadv(handle, [target[done : first + end - begin]], at)
                if not count:
                    raise OSError(f"the file of rows ends at byte {at}")
                done += count

    def _ranges(self, rows: Tensor) -> list[tuple[int, int]]:
        """Bytes of the file where runs of consecutive rows begin and end, in the order of `rows`.

        A plain loop: after a training step nothing of numpy is in the caches of the processor, and ten calls of it
        take longer.
        """
        numbers = rows.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(f"rows of {len(self)} lie in 0..{len(self) - 1}")
        ranges: list[tuple[int, int]] = []
        for number in numbers if self._positions is None else self._positions[rows].tolist():
            begin = self._offset + number * self._row_bytes
            if ranges and ranges[-1][1] == begin:
                begin = ranges.pop()[0]
            ranges.append((begin, self._offset + (number + 1) * self._row_bytes))
        return ranges


Rows = Tensor | StoredRows
"""Rows (N, *R) in memory, maybe memory-mapped, or in a file; both are taken by `rows[numbers]`, int64 (B,)."""


def select(source: Rows, rows: Tensor) -> Rows:
    """Some rows, int64 (B,), in their order; copied only where they are in memory."""
    return source[rows] if isinstance(source, Tensor) else source.select(rows)


def in_memory(source: Rows) -> Tensor:
    """All rows as one tensor; see `StoredRows.in_memory`."""
    return source if isinstance(source, Tensor) else source.in_memory()


class ArrayRows:
    """Rows as numpy takes them, for what knows no torch."""

    def __init__(self, source: Rows) -> None:
        """Copy nothing."""
        self._source = source
        self.shape = tuple(source.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Some rows: int64 (B,) -> (B, *R)."""
        return self._source[torch.from_numpy(rows)].numpy()
