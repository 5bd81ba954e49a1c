"""What a ready data set holds, read from its own files: counts, pages of images, original bytes, thumbnails, report.

The index is immutable, so every call opens it read-only and keeps nothing. Knows no row of the service's database,
and decodes no image: thumbnails are cut from the pixels that ingest left.
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import ImageNotFound, shown

CONTENT_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "BMP": "image/bmp", "GIF": "image/gif"}
SELECT = (
    'SELECT image."index", path, split, given, clean, width, height, sha256, format, image_bytes,'
    " offset, stored_bytes, deflated FROM image"
)


class ClassCount(NamedTuple):
    """A class with its images per split, by given label (test images without one: by clean label)."""

    class_id: int
    name: str
    train: int
    test: int


class ImageRow(NamedTuple):
    """An image by its index in the data set; `given` and `clean` are class ids, sizes are upright pixels."""

    number: int
    path: str
    split: str
    given: int | None
    clean: int | None
    width: int
    height: int
    sha256: str
    format: str
    image_bytes: int
    offset: int
    stored_bytes: int
    deflated: int

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[self.format]


class ReportRow(NamedTuple):
    """A line of the report; level is excluded, warning or ignored."""

    number: int
    path: str
    code: str
    detail: str
    level: str


def facts(folder: Path) -> dict[str, Any]:
    """What ingest found out: digest, image_size, counts of images and of report lines."""
    with _index(folder) as index:
        return {key: json.loads(value) for key, value in index.execute("SELECT key, value FROM fact")}


def class_names(folder: Path) -> list[str]:
    """Names by class id."""
    with _index(folder) as index:
        return [name for (name,) in index.execute('SELECT name FROM class ORDER BY "index"')]


def class_counts(folder: Path) -> list[ClassCount]:
    query = (
        "SELECT class.\"index\", name, SUM(split = 'train'), SUM(split = 'test') FROM class"
        ' LEFT JOIN image ON COALESCE(given, clean) = class."index" GROUP BY class."index" ORDER BY class."index"'
    )
    with _index(folder) as index:
        return [ClassCount(number, name, train or 0, test or 0) for number, name, train, test in index.execute(query)]


def images(
    folder: Path,
    *,
    split: str | None = None,
    given: int | None = None,
    among: Collection[int] | None = None,
    after: int = -1,
    limit: int = 100,
) -> list[ImageRow]:
    """A page in index order: the images behind index `after`, filtered; `among` are the only indices wanted."""
    where, values = ['image."index" > ?'], [after]
    for column, value in (("split", split), ("given", given)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)  # type: ignore[arg-type]
    with _index(folder) as index:
        if among is not None:
            index.execute("CREATE TEMP TABLE wanted (number INTEGER PRIMARY KEY)")
            index.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((number,) for number in among))
            where.append('image."index" IN (SELECT number FROM wanted)')
        query = f'{SELECT} WHERE {" AND ".join(where)} ORDER BY image."index" LIMIT ?'
        return [ImageRow(*row) for row in index.execute(query, (*values, limit))]


def image(folder: Path, reference: int | str) -> ImageRow:
    """One image by index or by its path in the archive; raises ImageNotFound."""
    column = "path" if isinstance(reference, str) else 'image."index"'
    with _index(folder) as index, contextlib.suppress(OverflowError, UnicodeEncodeError):
        row = index.execute(f"{SELECT} WHERE {column} = ?", (reference,)).fetchone()
        if row is not None:
            return ImageRow(*row)
    raise ImageNotFound(f"the data set has no image {shown(reference)!r}")


def original(folder: Path, row: ImageRow) -> bytes:
    """The bytes of an image as they were uploaded."""
    with (folder / "archive").open("rb") as archive:
        archive.seek(row.offset)
        stored = archive.read(row.stored_bytes)
    return zlib.decompressobj(-15).decompress(stored, row.image_bytes) if row.deflated else stored


def thumbnail(folder: Path, row: ImageRow) -> bytes:
    """A PNG of the image as the network sees it, cut from the packed pixels."""
    known = facts(folder)
    path = folder / f"pixels-{known['image_size']}-{known['resize']}.npy"
    with path.open("rb") as pixels:
        prefix = pixels.read(10)
        header_bytes = struct.unpack_from("<H", prefix, 8)[0]
        found = re.search(rb"'shape': \((\d+), (\d+), (\d+), 3\)", pixels.read(header_bytes))
        if found is None:
            raise ValueError(f"{path.name} is not an array of pixels")
        height, width = int(found[2]), int(found[3])
        pixels.seek(10 + header_bytes + row.number * height * width * 3)
        return _png(pixels.read(height * width * 3), width, height)


def report(
    folder: Path, *, level: str | None = None, code: str | None = None, after: int = 0, limit: int = 1000
) -> list[ReportRow]:
    """A page of the report behind line number `after`."""
    query = (
        "SELECT rowid, path, code, detail, level FROM report"
        " WHERE rowid > ? AND level = COALESCE(?, level) AND code = COALESCE(?, code) ORDER BY rowid LIMIT ?"
    )
    with _index(folder) as index:
        return [ReportRow(*row) for row in index.execute(query, (after, level, code, limit))]


def report_summary(folder: Path) -> dict[str, dict[str, int]]:
    """Lines of the report counted by level and code."""
    summary: dict[str, dict[str, int]] = {"excluded": {}, "warning": {}, "ignored": {}}
    with _index(folder) as index:
        for level, code, count in index.execute("SELECT level, code, COUNT(*) FROM report GROUP BY 1, 2 ORDER BY 1, 2"):
            summary[level][code] = count
    return summary


@contextlib.contextmanager
def _index(folder: Path) -> Iterator[sqlite3.Connection]:
    location = f"{(folder / 'index.sqlite').absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(location, uri=True)) as index:
        yield index


def _png(rgb: bytes, width: int, height: int) -> bytes:
    """8-bit RGB without filters."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = b"".join(b"\0" + rgb[at : at + width * 3] for at in range(0, len(rgb), width * 3))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
