"""A file inside a container, the limits on containers, and the bytes of a file by its offset and length."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ml.formats.errors import DatasetFormatError, printable

CHUNK_BYTES = 1 << 20


class OverBudget(Exception):
    """To read on would cost more than the caller's `Budget`; the container may be in order."""


@dataclass(frozen=True)
class Budget:
    """How much reading a container may cost a process that has other work.

    Args:
        names: Files, folders and records of extended headers, of which each costs a few kilobytes at most.
        inflated_bytes: Bytes that come out of a compressed tar.
        table_bytes: Bytes of all tables that are read.
    """

    names: int
    inflated_bytes: int
    table_bytes: int


@dataclass(frozen=True)
class Limits:
    """How much a container may hold (Z3).

    Args:
        entries: Files and folders.
        entry_bytes: Uncompressed bytes of one file.
        total_bytes: Uncompressed bytes of all files together.
        ratio: Uncompressed bytes for each compressed byte. It counts from `ratio_from_bytes` of uncompressed bytes on:
            no ordinary picture compresses so well.
        ratio_from_bytes: See `ratio`.
        table_bytes: Bytes of all tables of labels that are read, and of all tables of a compressed tar.
        table_rows: Rows of a table of labels. Some have no image, so it is far above `entries`.
        budget: What reading may cost; beyond it OverBudget is raised. None for no bound but the limits.
    """

    entries: int = 150_000
    entry_bytes: int = 64 << 20
    total_bytes: int = 8 << 30
    ratio: float = 200.0
    ratio_from_bytes: int = 1 << 20
    table_bytes: int = 64 << 20
    table_rows: int = 1_000_000
    budget: Budget | None = None


DEFAULT_LIMITS = Limits()

UNLIMITED = Limits(
    entries=sys.maxsize, entry_bytes=sys.maxsize, total_bytes=sys.maxsize, ratio=float("inf"), table_bytes=sys.maxsize,
    table_rows=sys.maxsize,
)  # fmt: skip
"""For the command line, where people read their own files: limits protect a service from its clients."""


class Entry(NamedTuple):
    """A file of a container, and where its bytes lie.

    Args:
        path: The name, with `/` between folders.
        offset: Of the first byte in the container; in a compressed tar, in the tar inside; 0 in a plain folder.
        stored_bytes: How many bytes lie there.
        deflated: Whether they are compressed by deflate.
        image_bytes: How many they are uncompressed.
        crc: CRC-32 of the uncompressed bytes, where the container states one.
    """

    path: str
    offset: int
    stored_bytes: int
    deflated: bool
    image_bytes: int
    crc: int | None


class StoredFile(Protocol):
    """What is needed to restore the bytes of a file; `Entry` and `ImageRecord` have it. For the fields see `Entry`."""

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


def restore(stored: bytes, file: StoredFile) -> bytes:
    """The bytes of a file from the bytes that are stored, held against the stated size and CRC.

    Raises:
        DatasetFormatError: `damaged_entry` or `bad_checksum` for a damaged file; `archive_too_large` for one that is
            larger than stated, which makes the whole archive untrustworthy (Z3).
    """
    data = _inflate(stored, file) if file.deflated else stored
    if len(data) != file.image_bytes or (file.crc is not None and zlib.crc32(data) != file.crc):
        raise DatasetFormatError("bad_checksum", "size or CRC is not the one that the archive states", file.path)
    return data


def _inflate(stored: bytes, file: StoredFile) -> bytes:
    try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, file.image_bytes + 1)
    except zlib.error as error:
        detail = f"the compressed data cannot be read: {error}"[:200]
        raise DatasetFormatError("damaged_entry", detail, file.path) from error
    if len(data) > file.image_bytes:
        raise too_large(f"{printable(file.path)!r} is larger than the archive states", file.path)
    return data


def bad(detail: str, path: str | None = None) -> DatasetFormatError:
    """A container that is damaged or of no known format."""
    return DatasetFormatError("bad_archive", detail, path)


def ambiguous(detail: str, path: str | None = None) -> DatasetFormatError:
    """A container that different programs would read differently."""
    return DatasetFormatError("ambiguous_archive", detail, path)


def too_large(detail: str, path: str | None = None) -> DatasetFormatError:
    """A container beyond its limits."""
    return DatasetFormatError("archive_too_large", detail, path)


def check_count(entries: int, limits: Limits) -> None:
    """Refuse a container with too many entries."""
    if entries > limits.entries:
        raise too_large(f"the archive has more than {limits.entries} entries")


def check_names(count: int, limits: Limits) -> None:
    """Stop where more names were read than the budget has."""
    if limits.budget is not None and count > limits.budget.names:
        raise OverBudget


def check_table_bytes(tables: Iterable[Entry], limits: Limits) -> None:
    """Refuse tables that together are too large to be read (C5), and stop where they are beyond the budget."""
    total = 0
    for table in tables:
        total += table.image_bytes
        if total > limits.table_bytes:
            detail = (
                f"the table {printable(table.path)!r}, with those before it, is larger than {limits.table_bytes} bytes"
            )
            raise too_large(detail, table.path)
    if limits.budget is not None and total > limits.budget.table_bytes:
        raise OverBudget


def check_bytes(path: str, size: int, total: int, limits: Limits) -> None:
    """Refuse an entry whose `size` in bytes is too large, or with which the `total` of the container becomes so."""
    if size > limits.entry_bytes and not is_shard(path):
        raise too_large(f"{printable(path)!r} has {size} bytes; at most {limits.entry_bytes} an entry", path)
    if total > limits.total_bytes:
        raise too_large(f"the archive holds more than {limits.total_bytes} bytes", path)


def is_shard(path: str) -> bool:
    """Whether a file of this name holds many images; see `ml.formats.shards`."""
    return path.lower().endswith(".parquet")
