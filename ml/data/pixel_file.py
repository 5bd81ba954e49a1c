"""Pixel files: every image of a data set decoded once into squares, uint8 (N, S, S, 3), read by rows afterwards.

Knows no label and no split, and no format of containers: images are read by a function.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from ml.data import decoding, image_headers
from ml.data.decoding import Geometry, ImageArray, Resize
from ml.errors import UndecodableImage, UnusableData
from ml.formats.errors import DatasetFormatError
from ml.formats.records import ImageRecord

CHUNK = 128  # images between two reports of progress, and the rows of the one buffer
NPY_HEADER_BYTES = 4096  # fixed, so that the row count can be written last; a page, so that rows share none
THREADED_FROM_BYTES = 8192  # a smaller image is decoded in less time than it takes to pass it to a thread

ReadFile = Callable[[ImageRecord], bytes]
"""A function from an image to the bytes of its file. It raises OSError or DatasetFormatError."""

Progress = Callable[[int, int], None]
"""A function of the numbers of images done and in all, called after every chunk; it may raise to stop."""


class DecodedImage(NamedTuple):
    """What became of an image.

    Args:
        width: Pixels, upright.
        height: See `width`.
        sha256: Of the file, in hexadecimal digits.
        format: JPEG, PNG, WEBP, BMP or GIF.
        fault: Code and detail of what is wrong with an image that is left out; the other fields are then empty.
    """

    width: int
    height: int
    sha256: str
    format: str
    fault: tuple[str, str] | None = None


def quiet(done: int, total: int) -> None:
    """Report no progress."""


def read_image(read: ReadFile, image: ImageRecord) -> bytes:
    """The bytes of an image file.

    Raises:
        UndecodableImage: The file is damaged or cannot be read.
        UnusableData: It is larger than its archive states, which makes the whole archive untrustworthy (Z3).
    """
    try:
        return read(image)
    except DatasetFormatError as error:
        if error.code == "archive_too_large":
            raise UnusableData(error.detail, code=error.code) from error
        raise UndecodableImage(error.code, error.detail) from error
    except OSError as error:
        raise UndecodableImage("unreadable_file", f"the file cannot be read: {error.strerror}") from error


def decode_all(
    read: ReadFile,
    images: Sequence[ImageRecord],
    file: PixelFile,
    *,
    resize: Resize,
    threads: int = 1,
    progress: Progress = quiet,
) -> list[DecodedImage]:
    """Decode every image into the next row of `file`; one with a fault leaves no row.

    Args:
        read: A function from an image to the bytes of its file; it is called by several threads.
        images: In the order of the rows.
        file: Open for writing.
        resize: How an image is made square.
        threads: At most so many decode at a time.
        progress: Called after every chunk.

    Raises:
        UnusableData: See `read_image`.
    """
    size = file.size
    results: list[DecodedImage] = []
    buffer = np.empty((CHUNK, size, size, 3), np.uint8)
    is_heavy = sum(image.stored_bytes for image in images) >= THREADED_FROM_BYTES * max(len(images), 1)
    workers = max(1, threads) if is_heavy else 1
    with ThreadPoolExecutor(workers) as pool:

        def decode_part(first: int, part: Sequence[ImageRecord]) -> list[DecodedImage]:
            return [decode_square(read, image, buffer[first + k], resize) for k, image in enumerate(part)]

        for start in range(0, len(images), CHUNK):
            # Each worker decodes a contiguous part of the chunk into its rows of the buffer.
            chunk = images[start : start + CHUNK]
            if workers == 1:
                decoded = decode_part(0, chunk)
            else:
                firsts = range(0, len(chunk), -(-len(chunk) // workers))
                parts = [chunk[first : first + firsts.step] for first in firsts]
                decoded = [result for part in pool.map(decode_part, firsts, parts) for result in part]
            # Rows without a fault go to the file.
            good = [k for k, result in enumerate(decoded) if result.fault is None]
            file.append(buffer[: len(decoded)] if len(good) == len(decoded) else buffer[good])
            results.extend(decoded)
            progress(len(results), len(images))
    return results


def decode_square(read: ReadFile, image: ImageRecord, square: ImageArray, resize: Resize) -> DecodedImage:
    """Decode one image into a square of pixels.

    Args:
        read: See `decode_all`.
        image: The image.
        square: uint8 (S, S, 3), overwritten unless the image has a fault.
        resize: How the image is made square.

    Raises:
        UnusableData: See `read_image`.
    """
    try:
        data = read_image(read, image)
        if decoding.decode_into(data, square):
            height, width, kind = square.shape[0], square.shape[1], "JPEG"
        else:
            kind = image_headers.header(data).format
            picture = decoding.decode(data)
            height, width = picture.shape[:2]
            square[:] = decoding.resize(picture, Geometry(width, height, square.shape[0], resize))
    except UndecodableImage as error:
        return DecodedImage(0, 0, "", "", (error.code, error.detail))
    return DecodedImage(width, height, hashlib.sha256(data).hexdigest(), kind)


class PixelFile:
    """A .npy file being written: rows are appended, their count is written at the end, then it is renamed into place.

    It is written to, not mapped: a full disk is then an OSError, and would be a SIGBUS in a writable map.

    Args:
        target: The file to make.
        size: Pixels of a side, S.
    """

    def __init__(self, target: Path, size: int) -> None:
        self.target, self.size, self.rows = target, size, 0
        self._temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")

    def __enter__(self) -> Self:
        self._file = os.fdopen(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._file.write(bytes(NPY_HEADER_BYTES))
        return self

    def append(self, squares: ImageArray) -> None:
        """Write rows, uint8 (n, S, S, 3)."""
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
