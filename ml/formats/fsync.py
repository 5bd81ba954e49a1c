"""Flushes files to the disk, and hashes them to detect damage."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class FileHash(NamedTuple):
    """Size in bytes and SHA-256 (hex) of a file."""

    bytes: int
    sha256: str


def hash_file(path: Path) -> FileHash:
    """Read a file and return its size and hash."""
    with path.open("rb") as file:
        return FileHash(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def flush(path: Path) -> None:
    """Return when the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
