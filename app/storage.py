"""Where the service's files lie: their paths below the data folder, and how they are read, published and deleted there.

Paths are made from UUIDs, fences and fixed names only, never from a path, name or URL of a client (SEC2).

Here finished files stay in the data folder: what is published is renamed to its path. `app.shared_storage` publishes to
an object store instead, and chooses between the two (`open_storage`).
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from app import local_files
from app.errors import InsufficientStorage
from app.local_files import ReadAt
from app.object_store import Progress
from ml.formats import dataset_index, weights_folder
from ml.formats.weights_folder import WeightsRecord

ENOSPC_RETRY_S = 60
ARTIFACTS, LOG_FILE = "artifacts", "log.jsonl"  # in the folder of an attempt
CHECKPOINTS = "checkpoints"  # the same
EXPORT = "model.zip"  # in the folder of a model, and an artifact of its job: what is downloaded of it


@dataclass(frozen=True)
class DownloadableFile:
    """A file that can be downloaded.

    Attributes:
        size: Its bytes.
        sha256: In hexadecimal; None where nobody has written it down.
        fetch: Where it can be read.
    """

    size: int
    sha256: str | None
    fetch: Callable[[], Path]


class Staged:
    """A file or folder that is complete, and not visible yet.

    Args:
        source: It.
        target: Where readers will expect it.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._source, self._target = source, target

    def publish(self) -> None:
        """Make it visible in place of what was there; nothing happens the second time."""
        if self._source.exists() and self._source != self._target:
            local_files.remove(self._target)
            local_files.publish(self._source, self._target)


class Storage:
    """The folder tree below `DENLL_DATA_DIR`, which is `root`. Its methods name paths; a path need not exist.

    An object store is named below only where a method does more with one: `app.shared_storage.SharedStorage`.

    Args:
        root: The data folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def create(self) -> None:
        """Create the folders that do not exist, and close the root to other users, also where it exists.

        Raises:
            MixedStorage: There is an object store, and data sets or models that were never published to it.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(PermissionError):  # another user owns it, and has given this one access
            self.root.chmod(0o700)
        for name in ("datasets", "jobs", "models", "uploads", "weights"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    # --- Names

    def dataset(self, dataset_id: uuid.UUID) -> Path:
        return self.root / "datasets" / str(dataset_id)

    def job(self, job_id: uuid.UUID) -> Path:
        return self.root / "jobs" / str(job_id)

    def attempt(self, job_id: uuid.UUID, fence: int) -> Path:
        """The folder of the attempt that works under this fence."""
        return self.job(job_id) / f"attempt-{fence}"

    def attempts(self, job_id: uuid.UUID) -> list[Path]:
        """Folders of every attempt at a job on this host, newest first."""
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

    # --- Whether it works

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def require(self, free: int) -> None:
        """Raise InsufficientStorage unless `free` bytes are left."""
        if self.free_bytes() < free:
            raise InsufficientStorage(
                f"Less than {free / 2**30:.1f} GiB are free; delete data sets or models, or add disk.",
                retry_after_s=ENOSPC_RETRY_S,
            )

    def fault(self) -> str | None:
        """Why the object store cannot be used; None while it can, and without one."""
        return None

    # --- Reading what is published

    def fetch(self, path: Path, *names: str, hold: bool = False, progress: Progress | None = None) -> Path:
        """Where a published file or folder can be read: the path itself, or a copy from the object store.

        Args:
            path: As a method of this class names it.
            names: Files of a folder that are needed; none for all.
            hold: Whether it is in use until this process ends.
            progress: Told how many bytes are there; what it raises ends the wait.

        Raises:
            FileNotFoundError: There is an object store, and nothing is published at the path.
            StorageUnavailable: The object store cannot be reached.
            OSError: The disk is full.
        """
        return path

    def fetch_dataset(
        self,
        dataset_id: uuid.UUID,
        *versions: int,
        with_images: bool = False,
        hold: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """The folder of a ready data set, with its index and versions of its labels.

        Args:
            dataset_id: The data set, which has a row.
            versions: Of the labels, which have rows.
            with_images: Whether its images and pixels are needed as well.
            hold: As of `fetch`.
            progress: As of `fetch`.

        Raises:
            DatasetUnavailable: There is an object store, and the files are not there.
            StorageUnavailable, OSError: As of `fetch`.
        """
        return self.dataset(dataset_id)

    def find_dataset(self, dataset_id: uuid.UUID) -> Path | None:
        """The folder of a data set with its index, without asking the database; None where there is no ready one."""
        folder = self.dataset(dataset_id)
        return folder if dataset_index.is_ready(folder) else None

    def reading(self, dataset_id: uuid.UUID, name: str) -> AbstractContextManager[ReadAt]:
        """Read a few bytes of a file of a data set, without a copy of all of it; raises as `fetch` does."""
        return local_files.reading(self.dataset(dataset_id) / name)

    def artifacts(self, job_id: uuid.UUID) -> dict[str, DownloadableFile]:
        """The artifacts of the newest attempt that has any, by name."""
        for attempt in self.attempts(job_id):
            folder = attempt / ARTIFACTS
            paths = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
            if paths:
                return {p.name: _on_disk(p) for p in paths if not p.name.startswith(".") and ".tmp" not in p.name}
        return {}

    def find_artifact(self, job_id: uuid.UUID, name: str) -> Path | None:
        """The artifact of this name of the newest attempt that has it; None where none has."""
        paths = (attempt / ARTIFACTS / name for attempt in self.attempts(job_id))
        return next((path for path in paths if path.is_file()), None)

    def log_files(self, job_id: uuid.UUID) -> dict[int, Path]:
        """The log of each attempt by its fence, the oldest first. On another host a running one's is seconds old."""
        return {fence_of(folder): folder / LOG_FILE for folder in reversed(self.attempts(job_id))}

    def find_model_file(self, model_id: uuid.UUID, name: str) -> DownloadableFile | None:
        """A file of a model; None where it has none of this name."""
        path = self.model(model_id) / name
        return _on_disk(path) if path.is_file() else None

    def models(self) -> dict[uuid.UUID, float]:
        """Ids of the published models, each with the time of its publication in seconds since 1970."""
        models = {}
        for folder in (self.root / "models").iterdir():
            try:
                models[uuid.UUID(folder.name)] = folder.stat().st_mtime
            except (ValueError, FileNotFoundError):
                continue  # not a model, or just deleted
        return models

    def find_deleted_models(self, model_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
        """Those of the models that are not published any more."""
        return [model_id for model_id in model_ids if not self.model(model_id).is_dir()]

    # --- Publishing and deleting

    def stage(self, source: Path, target: Path, progress: Progress | None = None) -> Staged:
        """Prepare a complete, synced file or folder for its publication at `target`; with an object store, upload it.

        Args:
            source: On the file system of the data folder.
            target: As a method of this class names it.
            progress: As of `fetch`.

        Raises:
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        return Staged(source, target)

    @contextlib.contextmanager
    def new_labels(self, dataset_id: uuid.UUID, version: int) -> Iterator[Path]:
        """A folder to write the file of a new version of labels into; it is published when the block ends."""
        yield self.dataset(dataset_id)

    def published(self, path: Path) -> list[Path]:
        """What is published below a path in the object store, as paths; without one nothing."""
        return []

    def remove(self, path: Path) -> int:
        """Delete a file or folder, wherever it lies, and what is published below it.

        While the object store cannot be reached, that is left to the next collection.

        Returns:
            Bytes freed, 0 when there was nothing.
        """
        return local_files.remove(path)

    def remove_published(self, path: Path) -> None:
        """Delete what is published at a path in the object store, and nothing of this host."""

    def sweep(self, older_than_s: float, resumable_older_than_s: float) -> None:
        """Delete from this host what the object store no longer has, and old work that was given up.

        One process of a host does it, every ten minutes; for the others, and without an object store, nothing is done.

        Args:
            older_than_s: Unfinished work was given up where nobody has changed it for so long.
            resumable_older_than_s: The same of resumable uploads, if that is more.
        """

    # --- Pretrained weights

    def installed_weights(self) -> list[WeightsRecord]:
        """The records of all installed weights, by name."""
        return weights_folder.installed(self.weights())

    def weights_record(self, name: str) -> WeightsRecord | None:
        """The record of the weights called `name`; None where they are not installed."""
        return weights_folder.read_record(self.weights(), name)

    def fetch_weights(self, name: str | None) -> Path:
        """The folder of pretrained weights, in which those called `name` are if they are installed at all.

        Raises:
            StorageUnavailable: The object store cannot be reached.
        """
        return self.weights()

    def install_weights(self, file: Path, record: WeightsRecord) -> None:
        """Install a complete file of weights, in place of those of its name; see `weights_folder.install`."""
        weights_folder.install(self.weights(), file, record)

    def remove_weights(self, name: str) -> bool:
        """Delete the weights called `name`; whether they were installed."""
        return weights_folder.remove(self.weights(), name)


def fence_of(attempt: Path) -> int:
    """The fence of an attempt, from the name of its folder."""
    return int(attempt.name.removeprefix("attempt-"))


def _on_disk(path: Path) -> DownloadableFile:
    return DownloadableFile(path.stat().st_size, None, lambda: path)
