"""Squares of pixels beside a data set: every picture decoded once, uint8 (N, S, S, 3), memory-mapped afterwards.

Reads pictures in place from one mapped container (a zip or a tar) by offset and length; what a container looks like
inside is known to whoever made the items. Knows no label and no split.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import numpy as np

from ml.data import decoding, image_headers
from ml.data.decoding import Geometry, ImageArray, Resize
from ml.errors import UndecodableImage, UnusableData

CHUNK = 128  # pictures between two reports of progress, and the rows of the one buffer
NPY_HEADER_BYTES = 128  # fixed, so that the row count can be written last
THREADED_FROM_BYTES = 8192  # below this a picture decodes in less time than handing it to a thread takes

Progress = Callable[[int, int], None]
"""Told (done, total) after every chunk; may raise to stop."""


class Item(Protocol):
    """A picture inside a mapped container. `crc` is the CRC-32 that the container states, if it states one."""

    @property
    def path(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def stored_bytes(self) -> int: ...
    @property
    def deflated(self) -> bool | int: ...
    @property
    def image_bytes(self) -> int: ...
    @property
    def crc(self) -> int | None: ...


class Outcome(NamedTuple):
    """What became of one item: upright size, hash and format, or the `fault` (code, detail) that excludes it."""

    width: int
    height: int
    sha256: str
    format: str
    fault: tuple[str, str] | None = None


def quiet(done: int, total: int) -> None:
    """Progress that nobody watches."""


def path(folder: Path, size: int, resize: Resize) -> Path:
    return folder / f"pixels-{size}-{resize}.npy"


@contextlib.contextmanager
def mapped(container: Path) -> Iterator[mmap.mmap]:
    with container.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def read(view: mmap.mmap, item: Item) -> bytes:
    """The bytes of one picture, checked against the stated size and CRC; raises UndecodableImage.

    A picture that inflates beyond its stated size makes the whole archive a lie: UnusableData (Z3).
    """
    stored = view[item.offset : item.offset + item.stored_bytes]
    data = _inflate(stored, item) if item.deflated else stored
    if len(data) != item.image_bytes or (item.crc is not None and zlib.crc32(data) != item.crc):
        raise UndecodableImage("bad_checksum", "size or CRC is not the one that the archive states")
    return data


def _inflate(stored: bytes, item: Item) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(stored, item.image_bytes + 1)
    except zlib.error as error:
        raise UndecodableImage("damaged_entry", f"the compressed data cannot be read: {error}"[:200]) from error
    if len(data) > item.image_bytes:
        raise UnusableData(f"{item.path} is larger than the archive states", code="archive_too_large")
    return data


def decode_all(
    container: Path,
    items: Sequence[Item],
    file: PixelFile,
    *,
    resize: Resize,
    threads: int = 1,
    progress: Progress = quiet,
) -> list[Outcome]:
    """Decode every item into the next row of `file`; an item with a fault leaves no row."""
    size = file.size
    outcomes: list[Outcome] = []
    buffer = np.empty((CHUNK, size, size, 3), np.uint8)
    heavy = sum(item.stored_bytes for item in items) >= THREADED_FROM_BYTES * max(len(items), 1)
    workers = max(1, threads) if heavy else 1
    with mapped(container) as view, ThreadPoolExecutor(workers) as pool:

        def decode_part(first: int, part: Sequence[Item]) -> list[Outcome]:
            return [_decode(view, item, buffer[first + k], resize) for k, item in enumerate(part)]

        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            if workers == 1:
                found = decode_part(0, chunk)
            else:
                firsts = range(0, len(chunk), -(-len(chunk) // workers))
                parts = [chunk[first : first + firsts.step] for first in firsts]
                found = [outcome for part in pool.map(decode_part, firsts, parts) for outcome in part]
            good = [k for k, outcome in enumerate(found) if outcome.fault is None]
            file.append(buffer[: len(found)] if len(good) == len(found) else buffer[good])
            outcomes.extend(found)
            progress(len(outcomes), len(items))
    return outcomes


def _decode(view: mmap.mmap, item: Item, square: ImageArray, resize: Resize) -> Outcome:
    try:
        data = read(view, item)
        if decoding.decode_into(data, square):
            height, width, kind = square.shape[0], square.shape[1], "JPEG"
        else:
            kind = image_headers.header(data).format
            picture = decoding.decode(data)
            height, width = picture.shape[:2]
            square[:] = decoding.resize(picture, Geometry.of(width, height, square.shape[0], resize))
    except UndecodableImage as error:
        return Outcome(0, 0, "", "", (error.code, error.detail))
    return Outcome(width, height, hashlib.sha256(data).hexdigest(), kind)


class PixelFile:
    """A .npy file under construction: rows are appended, the count is written at the end, then it appears by rename.

    Plain writes, not a writable map: a full disk is an OSError here and would be a SIGBUS there.
    """

    def __init__(self, target: Path, size: int) -> None:
        self.target, self.size, self.rows = target, size, 0
        self._temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")

    def __enter__(self) -> Self:
        self._file = os.fdopen(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "wb")
        self._file.write(bytes(NPY_HEADER_BYTES))
        return self

    def append(self, squares: ImageArray) -> None:
        self._file.write(np.ascontiguousarray(squares).data)
        self.rows += len(squares)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file as file:
            if kind is None:
                file.seek(0)
                file.write(_npy_header((self.rows, self.size, self.size, 3)))
                file.flush()
                os.fsync(file.fileno())
        if kind is None:
            self._temporary.replace(self.target)
        else:
            self._temporary.unlink(missing_ok=True)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Version 1.0 of numpy's format: magic, version, length, a padded dict."""
    described = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    padded = described.ljust(NPY_HEADER_BYTES - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded
