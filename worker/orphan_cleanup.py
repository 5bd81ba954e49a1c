"""Files that no row refers to: what a killed process left behind. Removed only when old, and only in our own folders.

A file under way (an upload being received, a bundle not yet published) is young; a finished one has a row.
"""

from __future__ import annotations

import itertools
import time
import uuid
from pathlib import Path

from app import storage
from app.retention import ReferencedFiles
from app.storage import Storage


def remove(files: Storage, referenced: ReferencedFiles, *, older_than_s: float) -> int:
    """Delete files and folders without a row, untouched for that long; how many."""
    if not any(referenced):
        return 0  # a folder of leftovers only is more likely beside the wrong database, or one still to be restored
    before = time.time() - older_than_s
    removed = 0
    for folder in ("datasets", "jobs", "models", "uploads"):
        kept = getattr(referenced, folder)
        for path in _children(files.root / folder):
            if path.name not in kept and _ours(path) and _touched(path) < before:
                storage.remove(path)
                removed += 1
    inside = [files.job(uuid.UUID(i)).glob("attempt-*/**/*.tmp*") for i in referenced.jobs]
    inside += [files.dataset(uuid.UUID(i)).glob("*.tmp") for i in referenced.datasets]
    for path in itertools.chain.from_iterable(inside):
        if _touched(path) < before:
            storage.remove(path)
            removed += 1
    return removed


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _ours(path: Path) -> bool:
    """Names this service makes: an id (with an ending), or a temporary file of one. Anything else is the operator's."""
    if path.name.endswith((".tmp", ".doomed", ".part")) or ".tmp" in path.name:
        return True
    try:
        uuid.UUID(path.name.partition(".")[0])
    except ValueError:
        return False
    return True


def _touched(path: Path) -> float:
    """When anything directly in it last changed."""
    try:
        return max([path.stat().st_mtime, *(p.stat().st_mtime for p in _children(path))])
    except FileNotFoundError:
        return time.time()  # somebody else is removing it
