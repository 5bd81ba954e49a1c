"""Features of a whole set of images on disk: written once, row by row.

Files that were left half written are continued, so a stopped job repeats at most one batch. Two jobs that need the same
files do not compute them twice: the second waits for the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ml.data.stored_rows import StoredRows
from ml.formats import file_lock, fsync

FOLDER = "features"  # in the folder of a data set
WAIT_S = 0.5  # between two looks at a file that another process writes
KEY_DIGITS = 20  # of the digest that names a file

Encode = Callable[[int], Iterable[Sequence[Tensor]]]
"""From the first row that is missing on: batches in the order of the rows, one tensor (B, ...) for each file."""

Progress = Callable[[int, int], None]
"""A function of the numbers of rows done and in all, called after every batch; it may raise to stop."""


class FeatureFile(NamedTuple):
    """One file: a row of numbers for every image."""

    path: Path
    shape: tuple[int, ...]  # of a row
    dtype: np.dtype[Any] = np.dtype(np.float16)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))

    @property
    def partial(self) -> Path:
        """Its name while it is written."""
        return self.path.with_suffix(".partial")

    def header(self, rows: int) -> bytes:
        """The header of a .npy file of so many rows in C order."""
        shape = (rows, *self.shape)
        described = f"{{'descr': '{self.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        length = -(-(len(described) + 11) // 64) * 64
        padded = described.ljust(length - 11) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def file_name(kind: str, facts: Mapping[str, Any]) -> str:
    """The name of a file of this kind and these facts: everything that its contents depend on, as JSON values."""
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return f"{kind}-{hashlib.sha256(canonical.encode()).hexdigest()[:KEY_DIGITS]}.npy"


def load_or_write(
    files: Sequence[FeatureFile], rows: int, encode: Encode, progress: Progress = lambda done, total: None
) -> list[StoredRows]:
    """The rows in `files`, which are written first unless all of them are there.

    Args:
        files: Of one folder, which is created.
        rows: N.
        encode: Computes the rows that are missing.
        progress: Called after every batch; only while rows are computed.

    Returns:
        For each file its rows (N, *shape).
    """
    folder = files[0].path.parent
    if not _all_written(files):
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(files, rows, progress):
            if not _all_written(files):
                _write(files, rows, encode, progress)
    return [StoredRows.open(file.path) for file in files]


def _all_written(files: Sequence[FeatureFile]) -> bool:
    return all(file.path.exists() for file in files)


def _write(files: Sequence[FeatureFile], rows: int, encode: Encode, progress: Progress) -> None:
    """Append the missing rows to partial files, then give these their final names."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(os.fdopen(_open(file.partial), "r+b")) for file in files]

        # Keep the rows that an earlier attempt has written completely to every file.
        headers = [file.header(rows) for file in files]
        done = rows
        for file, handle, header in zip(files, opened, headers, strict=True):
            done = min(done, max(0, handle.seek(0, os.SEEK_END) - len(header)) // file.row_bytes)
        for file, handle, header in zip(files, opened, headers, strict=True):
            handle.truncate(len(header) + done * file.row_bytes if done else 0)
            handle.seek(0)
            handle.write(header)
            handle.seek(len(header) + done * file.row_bytes)

        # Compute the others.
        for batches in encode(done) if done < rows else ():
            for file, handle, batch in zip(files, opened, batches, strict=True):
                limits = np.finfo(file.dtype)
                values = batch.float().clamp(float(limits.min), float(limits.max)).cpu().numpy()
                handle.write(np.ascontiguousarray(values.astype(file.dtype)).data)
            done += len(batches[0])
            progress(done, rows)
        for handle in opened:
            handle.flush()
            os.fsync(handle.fileno())
    for file in files:
        file.partial.replace(file.path)
    fsync.flush(files[0].path.parent)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _lock(files: Sequence[FeatureFile], rows: int, progress: Progress) -> Iterator[None]:
    """Only one process of a host writes these files at a time; who waits reports how far the other is."""
    with files[0].path.with_suffix(".lock").open("w") as lock:
        while not file_lock.try_lock(lock.fileno()):
            with contextlib.suppress(FileNotFoundError):
                progress(min(rows, files[0].partial.stat().st_size // files[0].row_bytes), rows)
            time.sleep(WAIT_S)
        yield
