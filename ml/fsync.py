"""Files that survive a power cut, and what proves that they are whole. What is in them, this module does not know."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple


class Fingerprint(NamedTuple):
    """What tells a whole file from a damaged one."""

    bytes: int
    sha256: str


def fingerprint(path: Path) -> Fingerprint:
    with path.open("rb") as file:
        return Fingerprint(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def flush(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
