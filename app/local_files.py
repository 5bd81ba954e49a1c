"""Files and folders of this host that appear, change and go as a whole, whatever a process or the power does meanwhile.

Nothing of the service is known here. To flush and to hash a file: `ml.formats.fsync`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from ml.formats import fsync

ReadAt = Callable[[int, int], bytes]
"""Reads bytes of a file: where they begin, and how many."""


def keep_private() -> None:
    """Close every file and folder that this process creates from now on to other users, whatever the umask was.

    Called once by each `main`; children inherit it (docs/decisions/0016).
    """
    os.umask(0o077)


def publish(temporary: Path, target: Path) -> None:
    """Rename a complete, synced file or folder to the path where readers expect it, and sync the rename."""
    temporary.rename(target)
    fsync.flush(target.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync.flush(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> int:
    """Delete a file or folder; it is renamed first, so that no reader sees half of it.

    Returns:
        Bytes freed, 0 when there was nothing.
    """
    if not path.exists():
        return 0
    trash = path.with_name(f".{path.name}.{uuid.uuid4().hex}.trash")
    with contextlib.suppress(FileNotFoundError):
        path.rename(trash)
    freed = sum(p.stat().st_size for p in files_below(trash))
    if trash.is_dir():
        shutil.rmtree(trash, ignore_errors=True)
    else:
        trash.unlink(missing_ok=True)
    return freed


def files_below(path: Path) -> Iterator[Path]:
    """The file at a path, or all files below the folder there, in no order; nothing where there is neither."""
    if path.is_file():
        yield path
    elif path.is_dir():
        for child in path.rglob("*"):
            if child.is_file():
                yield child


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or copy it where that is not possible: on another file system, or one without links.

    Args:
        source: A file whose bytes never change.
        target: Does not exist.

    Raises:
        FileNotFoundError: The source is gone.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[ReadAt]:
    """Read a few bytes of a file at a time, for as long as the block runs; FileNotFoundError where there is none."""
    with path.open("rb") as file:
        yield lambda start, length: os.pread(file.fileno(), length, start)
