"""A label version as one archive in a format that other programs read, streamed."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Generator
from pathlib import Path

from ml.formats import dataset_index, export_tables, exporters
from ml.formats.entries import restore
from ml.formats.errors import DatasetFormatError
from ml.formats.export_archive import WRITERS
from ml.formats.export_source import ExportSource
from ml.formats.exporters import Format
from ml.formats.records import ImageRecord

REVISION = 1  # counted up when the bytes of the same export change
CHUNK_BYTES = 256 << 10


class Export:
    """One export of a data set.

    Args:
        folder: The data set, which is ready.
        source: The version of its labels.
        format: Whose files it has.

    Attributes:
        container: The kind of archive: zip or tar.
        tag: Hexadecimal digits that differ between exports whose bytes differ.
    """

    def __init__(self, folder: Path, source: ExportSource, format: Format) -> None:
        self._archive = folder / dataset_index.ARCHIVE_FILE
        exporter = exporters.load(format)
        self.container = exporter.CONTAINER
        facts = (source.digest, source.version, format, REVISION)
        self.tag = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
        self._writer = WRITERS[exporter.CONTAINER](functools.partial(exporter.files, source))

    def size(self) -> int:
        """Bytes of the export. Finding out takes a few readings of the index, and none of the images."""
        return self._writer.size()

    def chunks(self) -> Generator[bytes]:
        """The bytes of the export; only one image at a time is held.

        Raises:
            DatasetFormatError: An image is damaged. What came before is not a complete archive.
            OSError, sqlite3.Error: The data set cannot be read any more.
        """
        with self._archive.open("rb", buffering=0) as file:
            read = functools.partial(read_original, file.fileno())
            yield from export_tables.regrouped(self._writer.chunks(read), CHUNK_BYTES)


def read_original(descriptor: int, image: ImageRecord) -> bytes:
    """The bytes of an image as they were uploaded, held against the hash that ingest stored.

    The archive is read by calls, not mapped: a page fault would keep all threads waiting, and a fault of the disk would
    end the process.

    Args:
        descriptor: The open archive of the data set.
        image: From its index.

    Raises:
        DatasetFormatError: The archive is damaged.
    """
    data = restore(os.pread(descriptor, image.stored_bytes, image.offset), image)
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise DatasetFormatError("bad_checksum", "the image is not the one that was uploaded", image.path)
    return data
