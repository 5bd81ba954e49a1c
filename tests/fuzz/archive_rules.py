"""What holds for every archive that is accepted, whatever its format; shared by the targets that read archives."""

from __future__ import annotations

import contextlib
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ml.formats.archive import Archive, read_archive
from ml.formats.entries import Budget, Limits, OverBudget
from ml.formats.errors import DatasetFormatError
from tests.fuzz.targets import refusal

CODES = {
    "bad_archive", "encrypted_archive", "ambiguous_archive", "unsafe_entry_name", "unsafe_entry_type",
    "archive_too_large",
}  # fmt: skip
ENTRY_CODES = {"damaged_entry", "bad_checksum", "archive_too_large"}
# So low that inputs of a few kilobytes come to each of them.
LIMITS = Limits(
    entries=12, entry_bytes=1 << 10, total_bytes=2 << 10, ratio=20.0, ratio_from_bytes=2 << 10, table_bytes=1 << 9
)
BUDGET = Budget(names=6, inflated_bytes=3 << 10, table_bytes=100)


@contextlib.contextmanager
def stored(data: bytes) -> Iterator[Path]:
    """A file with these bytes."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def read(path: Path) -> tuple[Archive | None, str]:
    """The archive within LIMITS, or None and the code of its refusal; a budget never changes what is read."""
    archive, code = _read(path, LIMITS)
    with contextlib.suppress(OverBudget):
        cheap, cheap_code = _read(path, replace(LIMITS, budget=BUDGET))
        assert cheap_code == code
        assert summary(cheap) == summary(archive)
    return archive, code


def _read(path: Path, limits: Limits) -> tuple[Archive | None, str]:
    try:
        return read_archive(path, limits), ""
    except DatasetFormatError as error:
        return None, refusal(error, CODES)


def summary(archive: Archive | None) -> tuple[object, ...]:
    """What two readings of one archive must have in common."""
    return () if archive is None else (archive.container, archive.entries, archive.folders, archive.tables)


def check(archive: Archive, room: int) -> dict[str, bytes | None]:
    """Safe and unique names, files apart from each other, sizes within the limits.

    Args:
        archive: One that was accepted.
        room: Bytes of the container, once decompressed.

    Returns:
        The files by name; None for one that is damaged.
    """
    names = [entry.path for entry in archive.entries]
    folded = {fold(name) for name in names}
    assert len(folded) == len(names)
    for name in (*names, *archive.folders):
        parts = name.removesuffix("/").split("/")
        assert name == "" or all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
        assert "\\" not in name
        assert name[1:2] != ":" or not name[0].isalpha() or not name.isascii()
        assert not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
        assert folded.isdisjoint(fold("/".join(parts[:depth])) for depth in range(1, len(parts)))
    assert folded.isdisjoint(fold(name.removesuffix("/")) for name in archive.folders)

    assert len(names) + len(archive.folders) <= LIMITS.entries
    assert sum(entry.image_bytes for entry in archive.entries) <= LIMITS.total_bytes
    at = 0
    for entry in sorted(archive.entries, key=lambda entry: (entry.offset, entry.stored_bytes)):
        assert at <= entry.offset
        at = entry.offset + entry.stored_bytes
        assert entry.image_bytes <= LIMITS.entry_bytes
    assert at <= room
    return contents(archive)


def contents(archive: Archive) -> dict[str, bytes | None]:
    """The files by name; None for one that is damaged. Each has the size that the archive states."""
    files: dict[str, bytes | None] = {}
    with archive.reader() as restore:
        for entry in archive.entries:
            try:
                data = restore(entry)
            except DatasetFormatError as error:
                refusal(error, ENTRY_CODES)
                files[entry.path] = None
            else:
                assert len(data) == entry.image_bytes
                files[entry.path] = data
    return files


def fold(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
