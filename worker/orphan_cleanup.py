"""Deletes orphaned files: those that a killed process wrote and that no row in the database refers to.

Only old files are deleted, and only in the service's own folders. A file that is being written (an upload, a model
archive before it is published) is young; a finished one has a row.
"""

from __future__ import annotations

import itertools
import time
import uuid
from pathlib import Path

from app import local_files
from app.retention import ReferencedFiles
from app.shared_storage import SharedStorage
from app.storage import Storage


def remove(
    files: Storage, referenced: ReferencedFiles, *, older_than_s: float, resumable_older_than_s: float = 0.0
) -> int:
    """Delete orphaned files and folders.

    Args:
        files: The data folder.
        referenced: What rows refer to. When it is empty nothing is deleted: a data folder of orphans only is more
            likely one beside the wrong database, or beside one that is still to be restored.
        older_than_s: Only what nobody has changed for this many seconds is deleted.
        resumable_older_than_s: The same of resumable uploads, which have no row either; the larger one counts.

    Returns:
        How many files and folders were deleted.
    """
    if not any(referenced):
        return 0
    before = time.time() - older_than_s
    removed = 0

    # Top-level files and folders without a row.
    for folder in ("datasets", "jobs", "models", "uploads"):
        names = getattr(referenced, folder)
        for path in _entries(files.root / folder):
            is_resumable = folder == "uploads" and path.is_dir()
            limit = min(before, time.time() - resumable_older_than_s) if is_resumable else before
            if path.name not in names and _is_ours(path) and _modified_at(path) < limit:
                local_files.remove(path)
                removed += 1

    # Temporary files inside the folders of rows, and of pretrained weights.
    inside = [files.job(uuid.UUID(job_id)).glob("attempt-*/**/*.tmp*") for job_id in referenced.jobs]
    inside += [files.dataset(uuid.UUID(dataset_id)).glob("*.tmp") for dataset_id in referenced.datasets]
    inside.append(files.weights().glob(".*.tmp"))
    for path in itertools.chain.from_iterable(inside):
        if _modified_at(path) < before:
            local_files.remove(path)
            removed += 1
    return removed


def collect(files: SharedStorage, referenced: ReferencedFiles, *, older_than_s: float) -> int:
    """Delete from the object store what no row refers to, and what was uploaded and never published.

    Args:
        files: Has the object store.
        referenced: What rows refer to; when it is empty nothing is deleted, as in `remove`.
        older_than_s: Only what was written so many seconds ago is deleted.

    Returns:
        How many publications and objects without one were deleted.

    Raises:
        StorageUnavailable: The object store cannot be reached.
    """
    if not any(referenced):
        return 0

    def is_referenced(key: str) -> bool:
        folder, _, rest = key.partition("/")
        names = getattr(referenced, folder, None)
        return names is None or rest.partition("/")[0] in names  # weights have no row

    return sum(files.collect(is_referenced, older_than_s))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _is_ours(path: Path) -> bool:
    """Whether the service makes such a name: an id (with a suffix) or a temporary file; others are the operator's."""
    if path.name.endswith((".tmp", ".trash", ".part")) or ".tmp" in path.name:
        return True
    try:
        uuid.UUID(path.name.partition(".")[0])
    except ValueError:
        return False
    return True


def _modified_at(path: Path) -> float:
    """When it, or anything directly in it, last changed."""
    try:
        return max([path.stat().st_mtime, *(entry.stat().st_mtime for entry in _entries(path))])
    except FileNotFoundError:
        return time.time()  # another process is deleting it
