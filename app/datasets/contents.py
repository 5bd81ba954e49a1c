"""Images of a ready data set as the API serves them: original bytes and thumbnails. Nothing is decoded here.

`ml.formats.dataset_index` reads the index of a data set.
"""

from __future__ import annotations

import contextlib
import re
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

from app.errors import DatasetUnavailable, ImageNotFound
from app.storage import Storage
from ml.formats import dataset_index, label_versions
from ml.formats.entries import restore
from ml.formats.errors import UnreadableFile, printable
from ml.formats.records import ImageRecord

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif"}
NPY_PREFIX_BYTES = 10  # magic, version and the length of the header that follows
NPY_START_BYTES = 1024  # more than prefix and header of such an array


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turn missing and damaged files of a data set into DatasetUnavailable."""
    try:
        yield
    except (FileNotFoundError, UnreadableFile) as error:
        raise DatasetUnavailable.missing_files() from error


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
    with reading():
        image = dataset_index.find_image(folder, reference, version)
    if image is None:
        raise ImageNotFound(f"The data set has no image {printable(reference)!r}.")
    return image


def original(files: Storage, dataset_id: uuid.UUID, image: ImageRecord) -> bytes:
    """The bytes of an image as they were uploaded.

    Raises:
        DatasetUnavailable: The archive is gone.
        StorageUnavailable: The object store cannot be reached.
    """
    with reading(), files.reading(dataset_id, dataset_index.ARCHIVE_FILE) as read:
        return restore(read(image.offset, image.stored_bytes), image)


def thumbnail(files: Storage, dataset_id: uuid.UUID, image: ImageRecord) -> bytes:
    """A PNG of the image as a network sees it, cut from the pixels that ingest stored; raises as `original` does."""
    with reading():
        folder = files.fetch_dataset(dataset_id)
        facts = dataset_index.read_facts(folder)
        name = dataset_index.pixels_path(folder, facts["image_size"], facts["resize"]).name
        with files.reading(dataset_id, name) as read:
            start = read(0, NPY_START_BYTES)
            header_bytes = struct.unpack_from("<H", start, NPY_PREFIX_BYTES - 2)[0]
            shape = re.search(rb"'shape': \((\d+), (\d+), (\d+), 3\)", start[: NPY_PREFIX_BYTES + header_bytes])
            if shape is None:
                raise ValueError(f"{name} is not an array of pixels")
            height, width = int(shape[2]), int(shape[3])
            size = height * width * 3
            return _encode_png(read(NPY_PREFIX_BYTES + header_bytes + image.number * size, size), width, height)


def _encode_png(rgb: bytes, width: int, height: int) -> bytes:
    """8-bit RGB without filters."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + rgb[at : at + width * 3] for at in range(0, len(rgb), width * 3))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
