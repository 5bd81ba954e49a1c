"""What an uploaded archive contains, from our own reading of its structure (Z1-Z5); nothing is extracted.

Hands out every file's name and where its bytes lie, so that they can be read in place. `zips` and `tars` read the two
formats; what the files mean is `layout`'s business, and no image is opened here.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import mmap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, cast

from app.datasets import tars, zips
from app.datasets.entries import CHUNK_BYTES, DEFAULT, Entry, Limits, bad, too_large
from app.errors import ArchiveRejected, shown

GZIP_MAGIC, ZSTD_MAGIC, ZIP_MAGICS = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")


@dataclass(frozen=True)
class Archive:
    """`container` is how the bytes lie once unwrapped; `compression` is what is wrapped around a tar."""

    path: Path
    container: Literal["zip", "tar"]
    compression: Literal["", "gzip", "zstd"]
    entries: list[Entry]
    folders: list[str]
    limits: Limits
    tables: dict[str, bytes] = field(default_factory=dict)  # tables of a compressed tar, met while streaming

    def content(self, entry: Entry) -> bytes:
        """The bytes of a table; raises ArchiveRejected where they are too many or damaged (C5, Z5)."""
        if entry.image_bytes > self.limits.table_bytes:
            raise too_large(
                f"the table {shown(entry.path)!r} is larger than {self.limits.table_bytes} bytes", entry.path
            )
        if self.compression:
            return self.tables[entry.path]
        with self.path.open("rb") as file:
            file.seek(entry.offset)
            stored = file.read(entry.stored_bytes)
        try:
            data = zlib.decompressobj(-15).decompress(stored, entry.image_bytes + 1) if entry.deflated else stored
        except zlib.error:
            data = b""
        if len(data) > entry.image_bytes:
            raise too_large(f"{shown(entry.path)!r} is larger than the archive states", entry.path)
        if len(data) < entry.image_bytes or (entry.crc is not None and zlib.crc32(data) != entry.crc):
            raise bad(f"the table {shown(entry.path)!r} is damaged", entry.path)
        return data


def read(path: Path, limits: Limits = DEFAULT) -> Archive:
    """Check the structure of an archive and list its files; raises ArchiveRejected."""
    with path.open("rb") as file:
        start = file.read(512)
        if not start:
            raise bad("the archive is empty (0 bytes)")
        if start.startswith(ZIP_MAGICS):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                entries, folders = zips.read(view, limits)
            return Archive(path, "zip", "", entries, folders, limits)
        if compression := _compression(start):
            with _opened(file, compression) as plain:
                tape = tars.Inflated(plain, file, limits)
                entries, folders, tables = tars.read(tape, limits, keep=is_table)
            return Archive(path, "tar", compression, entries, folders, limits, tables)
        if tars.looks_like(start):
            entries, folders, _ = tars.read(tars.Plain(file), limits)
            return Archive(path, "tar", "", entries, folders, limits)
    raise bad("not a zip and not a tar (plain, gzip or zstd)")


def unwrap(path: Path, target: Path, limits: Limits = DEFAULT) -> bool:
    """Decompress a compressed tar into `target`, which must not exist; False (and no file) for zip and plain tar."""
    with path.open("rb") as file:
        compression = _compression(file.read(4))
        if not compression:
            return False
        with _opened(file, compression) as plain, target.open("xb") as out:
            tape = tars.Inflated(plain, file, limits)
            while chunk := tape.read(CHUNK_BYTES):
                out.write(chunk)
    target.chmod(0o640)
    return True


def is_table(name: str) -> bool:
    return name.lower().endswith((".csv", ".jsonl"))


def _compression(start: bytes) -> Literal["", "gzip", "zstd"]:
    if start.startswith(GZIP_MAGIC):
        return "gzip"
    return "zstd" if start.startswith(ZSTD_MAGIC) else ""


@contextlib.contextmanager
def _opened(file: BinaryIO, compression: Literal["gzip", "zstd"]) -> Iterator[BinaryIO]:
    """The tar inside, decompressed as it is read. zstd comes with Python 3.14."""
    file.seek(0)
    damage: tuple[type[Exception], ...] = (EOFError, zlib.error)
    if compression == "gzip":
        reader: BinaryIO = cast("BinaryIO", gzip.GzipFile(fileobj=file))
    else:
        try:
            zstd = importlib.import_module("compression.zstd")
        except ImportError:
            detail = "this server's Python cannot read zstd; send a zip, a tar or a tar.gz"
            raise ArchiveRejected(detail, code="unsupported_compression", status=415) from None
        damage = (*damage, zstd.ZstdError)
        reader = zstd.ZstdFile(file)
    try:
        with reader as plain:
            yield plain
    except damage as error:
        raise bad(f"the compressed tar is damaged: {shown(error)}") from error
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's trouble, not the archive's
        raise bad(f"the compressed tar is damaged: {shown(error)}") from error
