"""The words that all readers of archives share: an entry, the limits, and the ways to refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from app.errors import ArchiveRejected, shown

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Z3. A `ratio` below which no honest picture compresses counts for entries above `ratio_from_bytes`."""

    entries: int = 150_000
    entry_bytes: int = 64 << 20
    total_bytes: int = 8 << 30
    ratio: float = 200.0
    ratio_from_bytes: int = 1 << 20
    table_bytes: int = 64 << 20


DEFAULT = Limits()


class Entry(NamedTuple):
    """A file: its name and where its bytes lie in the container (for a compressed tar: in the tar inside)."""

    path: str
    offset: int
    stored_bytes: int
    deflated: bool
    image_bytes: int
    crc: int | None


def bad(detail: str, entry: str | None = None) -> ArchiveRejected:
    return ArchiveRejected(detail, code="bad_archive", entry=entry)


def ambiguous(detail: str, entry: str | None = None) -> ArchiveRejected:
    return ArchiveRejected(detail, code="ambiguous_archive", entry=entry)


def too_large(detail: str, entry: str | None = None) -> ArchiveRejected:
    return ArchiveRejected(detail, code="archive_too_large", entry=entry, status=413)


def require(entries: int, limits: Limits) -> None:
    if entries > limits.entries:
        raise too_large(f"the archive has more than {limits.entries} entries")


def require_size(name: str, size: int, total: int, limits: Limits) -> None:
    if size > limits.entry_bytes:
        raise too_large(f"{shown(name)!r} has {size} bytes; at most {limits.entry_bytes} an entry", name)
    if total > limits.total_bytes:
        raise too_large(f"the archive holds more than {limits.total_bytes} bytes", name)
