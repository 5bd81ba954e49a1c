"""Images of a ready data set as the API serves them: original bytes and thumbnails. Nothing is decoded here.

`ml.formats.dataset_index` reads the index of a data set.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from app.errors import DatasetUnavailable, ImageNotFound
from ml.formats import dataset_index, label_versions
from ml.formats.errors import printable
from ml.formats.records import ImageRecord

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif"}
NPY_PREFIX_BYTES = 10  # magic, version and the length of the header that follows


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turn missing files of the data set in a folder into DatasetUnavailable."""
    try:
        yield
    except (FileNotFoundError, sqlite3.OperationalError) as error:
        if isinstance(error, sqlite3.OperationalError) and dataset_index.is_ready(folder):
            raise  # another fault of the query
        raise DatasetUnavailable("Files of the data set are missing.") from error


def find_image(folder: Path, reference: int | str, version: int = label_versions.UPLOADED) -> ImageRecord:
    """One image of a data set.

    Args:
        folder: The folder of the data set.
        reference: The number of the image, or its path in the archive.
        version: Of the labels.

    Raises:
        ImageNotFound: The data set has no such image.
        DatasetUnavailable: Its index is gone.
    """
    with reading(folder):
        image = dataset_index.find_image(folder, reference, version)
    if image is None:
        raise ImageNotFound(f"the data set has no image {printable(reference)!r}")
    return image


def thumbnail(folder: Path, image: ImageRecord) -> bytes:
    """A PNG of the image as a network sees it, cut from the pixels that ingest stored."""
    facts = dataset_index.read_facts(folder)
    path = dataset_index.pixels_path(folder, facts["image_size"], facts["resize"])
    with path.open("rb") as pixels:
        prefix = pixels.read(NPY_PREFIX_BYTES)
        header_bytes = struct.unpack_from("<H", prefix, 8)[0]
        shape = re.search(rb"'shape': \((\d+), (\d+), (\d+), 3\)", pixels.read(header_bytes))
        if shape is None:
            raise ValueError(f"{path.name} is not an array of pixels")
        height, width = int(shape[2]), int(shape[3])
        pixels.seek(NPY_PREFIX_BYTES + header_bytes + image.number * height * width * 3)
        return _encode_png(pixels.read(height * width * 3), width, height)


def _encode_png(rgb: bytes, width: int, height: int) -> bytes:
    """8-bit RGB without filters."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + rgb[at : at + width * 3] for at in range(0, len(rgb), width * 3))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
