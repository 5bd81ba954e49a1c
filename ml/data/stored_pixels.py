"""Images in a file, uint8 (N, S, S, 3): read by rows into a buffer, or mapped into memory.

Shapes: `N` images, `B` rows, `S` side.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = 3


class _Handle:
    """A file descriptor, closed when nobody needs it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class StoredPixels:
    """N images one after the other in an open file, which must not change.

    Attributes:
        shape: (N, S, S, 3).
        nbytes: Of all images.
    """

    def __init__(self, handle: _Handle, offset: int, count: int, side: int) -> None:
        """Use `open`, `write_unnamed` or `part`.

        Args:
            handle: Of the file.
            offset: Bytes before the first image.
            count: N.
            side: S.
        """
        self.shape = (count, side, side, CHANNELS)
        self._row_bytes = side * side * CHANNELS
        self.nbytes = count * self._row_bytes
        self._handle, self._offset = handle, offset

    @classmethod
    def open(cls, path: Path) -> Self:
        """The images of a .npy file of `pixel_file.PixelFile`.

        Raises:
            ValueError: It is another kind of file.
        """
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            if len(shape) != 4 or shape[1:] != (shape[1], shape[1], CHANNELS) or dtype != np.uint8 or is_fortran:
                raise ValueError(f"{path} holds no square images")
            return cls(_Handle(os.dup(file.fileno())), file.seek(0, os.SEEK_CUR), shape[0], shape[1])

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
            return cls(_Handle(os.dup(file.fileno())), 0, count, side)

    def __len__(self) -> int:
        return self.shape[0]

    def part(self, start: int, stop: int) -> StoredPixels:
        """The images `start` to `stop` - 1."""
        return StoredPixels(self._handle, self._offset + start * self._row_bytes, stop - start, self.shape[1])

    def mapped(self) -> Tensor:
        """All images as memory that is read from disk when it is touched: uint8 (N, S, S, 3)."""
        if not len(self):
            return torch.empty(self.shape, dtype=torch.uint8)
        # Copy on write: torch wants memory it may write to, the file must never change.
        whole = mmap.mmap(self._handle.number, 0, access=mmap.ACCESS_COPY)
        return torch.from_numpy(np.frombuffer(whole, np.uint8, self.nbytes, self._offset).reshape(self.shape))

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some images, read as by `read`: rows int64 (B,) -> uint8 (B, S, S, 3)."""
        out = torch.empty((len(rows), *self.shape[1:]), dtype=torch.uint8)
        self.read(rows, out)
        return out

    def read(self, rows: Tensor, out: Tensor) -> None:
        """Read some images. All reads are announced first, so that a disk can work on many at a time.

        Args:
            rows: int64 (B,) on the CPU; consecutive ones are read at once.
            out: uint8 (B, S, S, 3), contiguous, on the CPU; overwritten.

        Raises:
            IndexError: There is no such row.
            OSError: The disk or the file fails.
        """
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"rows of {len(self)} images lie in 0..{len(self) - 1}")
        target, handle = out.numpy().reshape(-1).data, self._handle.number
        parts = [
            (self._offset + row * self._row_bytes, target[first * self._row_bytes : stop * self._row_bytes])
            for row, first, stop in _runs(rows.numpy())
        ]
        for offset, part in parts:
            os.posix_fadvise(handle, offset, len(part), os.POSIX_FADV_WILLNEED)
        for offset, part in parts:
            done = 0
            while done < len(part):
                count = os.preadv(handle, [part[done:]], offset + done)
                if not count:
                    raise OSError(f"the file of pixels ends at byte {offset + done}")
                done += count


def _runs(rows: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Runs of consecutive rows: the first row of each, and where in `rows` the run begins and ends."""
    begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
    ends = np.append(begins, len(rows))[1:]
    return list(zip(rows[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))
