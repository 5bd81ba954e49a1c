"""Paths of stored files, atomic writes, hashes and free space.

Paths are made from UUIDs, fences and fixed names only, never from a path, name or URL of a client (SEC2).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from app.errors import InsufficientStorage

CHUNK_BYTES = 1024 * 1024
ENOSPC_RETRY_S = 60
ARTIFACTS, LOG_FILE = "artifacts", "log.jsonl"  # in the folder of an attempt
EXPORT = "model.zip"  # in the folder of a model, and an artifact of its job: what is downloaded of it


class Storage:
    """The folder tree below `DENLL_DATA_DIR`, which is `root`. Its methods name paths; a path need not exist."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def create(self) -> None:
        """Create the folders that do not exist, and close the root to other users, also where it exists."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(PermissionError):  # another user owns it, and has given this one access
            self.root.chmod(0o700)
        for name in ("datasets", "jobs", "models", "uploads", "weights"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def dataset(self, dataset_id: uuid.UUID) -> Path:
        return self.root / "datasets" / str(dataset_id)

    def job(self, job_id: uuid.UUID) -> Path:
        return self.root / "jobs" / str(job_id)

    def attempt(self, job_id: uuid.UUID, fence: int) -> Path:
        """The folder of the attempt that works under this fence."""
        return self.job(job_id) / f"attempt-{fence}"

    def attempts(self, job_id: uuid.UUID) -> list[Path]:
        """Folders of every attempt at a job, newest first."""
        folders = [p for p in self.job(job_id).glob("attempt-*") if p.name.removeprefix("attempt-").isdigit()]
        return sorted(folders, key=fence_of, reverse=True)

    def model(self, model_id: uuid.UUID) -> Path:
        return self.root / "models" / str(model_id)

    def weights(self) -> Path:
        """The folder of pretrained weights."""
        return self.root / "weights"

    def new_weights(self) -> Path:
        """Where weights are received, beside those that are installed."""
        return self.weights() / f".{uuid.uuid4().hex}.tmp"

    def upload(self, upload_id: uuid.UUID) -> Path:
        """An archive received but not yet a data set."""
        return self.root / "uploads" / f"{upload_id}.archive"

    def resumable(self, upload_id: uuid.UUID) -> Path:
        """The folder of an archive that arrives in parts."""
        return self.root / "uploads" / str(upload_id)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def require(self, free: int) -> None:
        """Raise InsufficientStorage unless `free` bytes are left."""
        if self.free_bytes() < free:
            raise InsufficientStorage(
                f"Less than {free / 2**30:.1f} GiB are free; delete data sets or models, or add disk.",
                retry_after_s=ENOSPC_RETRY_S,
            )


def keep_private() -> None:
    """Close every file and folder that this process creates from now on to other users, whatever the umask was.

    Called once by each `main`; children inherit it (docs/decisions/0016).
    """
    os.umask(0o077)


def fence_of(attempt: Path) -> int:
    """The fence of an attempt, from the name of its folder."""
    return int(attempt.name.removeprefix("attempt-"))


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that new and renamed entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Sync a file's content, so that it survives a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish(temporary: Path, target: Path) -> None:
    """Rename a complete, synced file or folder to the path where readers expect it, and sync the rename."""
    temporary.rename(target)
    sync_folder(target.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: readers see the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if path.is_file():
        yield path
    elif path.is_dir():
        for child in path.rglob("*"):
            if child.is_file():
                yield child
