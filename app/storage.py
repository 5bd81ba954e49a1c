"""Where files lie: their paths, and whether they stay in the data folder or are published to an object store.

Paths are made from UUIDs, fences and fixed names only, never from a path, name or URL of a client (SEC2).

A path below the data folder is also the key of what is published there. Without an object store the path is the file:
`fetch` returns it, and `Staged.publish` renames to it. With one (docs/decisions/0021) the data folder holds work that
is not finished, and copies.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from app.errors import DatasetUnavailable, InsufficientStorage, StorageUnavailable
from app.object_cache import ObjectCache
from app.object_store import Garbage, Manifest, ObjectStore, Progress
from app.settings import Settings
from ml.formats import dataset_index, label_versions, weights_folder
from ml.formats.weights_folder import WeightsRecord

log = logging.getLogger(__name__)

CHUNK_BYTES = 1024 * 1024
ENOSPC_RETRY_S = 60
ARTIFACTS, LOG_FILE = "artifacts", "log.jsonl"  # in the folder of an attempt
CHECKPOINTS = "checkpoints"  # the same
EXPORT = "model.zip"  # in the folder of a model, and an artifact of its job: what is downloaded of it
CACHE, SCRATCH = "cache", "scratch"
UNFINISHED = {"datasets": "*.tmp-*", "jobs": "*", "uploads": "*", SCRATCH: "*", CACHE: ".*"}  # what a sweep looks at
SWEEP_S = 600.0  # a host's cache is compared with the store this often
MANIFEST_S = 2.0  # for so long it is believed that a data set is still there
MOST_MANIFESTS = 4096

ReadAt = Callable[[int, int], bytes]
"""Reads bytes of a file: where they begin, and how many."""


class MixedStorage(RuntimeError):
    """The data folder holds finished files although there is an object store; the message says what to do."""


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
        cache: Has the object store; None without one.
        manifest: What was uploaded; None without an object store.
    """

    def __init__(
        self, source: Path, target: Path, cache: ObjectCache | None = None, manifest: Manifest | None = None
    ) -> None:
        self._source, self._target = source, target
        self._cache, self._manifest = cache, manifest

    def publish(self) -> None:
        """Make it visible in place of what was there; nothing happens the second time."""
        if self._cache is not None and self._manifest is not None:
            self._cache.store.publish(self._manifest)
            self._cache.adopt(self._manifest, self._source)
        elif self._source.exists() and self._source != self._target:
            remove(self._target)
            publish(self._source, self._target)


class Storage:
    """The folder tree below `DENLL_DATA_DIR`, which is `root`. Its methods name paths; a path need not exist.

    Args:
        root: The data folder.
        cache: This host's copies of what is in the object store; None where finished files stay in the data folder.
    """

    def __init__(self, root: Path, cache: ObjectCache | None = None) -> None:
        self.root = root.absolute()
        self._cache = cache
        self._manifests: dict[str, tuple[float, Manifest]] = {}  # of what never changes, and when it was read

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The storage that the settings describe."""
        if not settings.object_store:
            return cls(settings.data_dir)
        folder = settings.data_dir.absolute() / CACHE
        return cls(settings.data_dir, ObjectCache(ObjectStore(settings), folder, settings.cache_bytes))

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
        if self._cache is None:
            return
        for name in (CACHE, SCRATCH):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        local = [p for name in ("datasets", "models") for p in (self.root / name).iterdir() if _is_uuid(p.name)]
        if local:
            raise MixedStorage(
                f"{self.root} holds {len(local)} data sets and models from before DENLL_OBJECT_STORE was set: back the "
                "service up without it, and restore the backup with it and another data folder"
            )
        if (fault := self._cache.store.fault()) is not None:  # its client takes a second to load
            log.warning("%s", fault)

    # --- Names

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

    # --- Reading what is published

    @property
    def is_shared(self) -> bool:
        """Whether finished files lie in an object store, and not in this folder."""
        return self._cache is not None

    def fault(self) -> str | None:
        """Why the object store cannot be used; None while it can, and without one."""
        return None if self._cache is None else self._cache.store.fault()

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
        if self._cache is None:
            return path
        for is_first in (True, False):
            manifest = self._manifest(path)
            if manifest is None:
                break
            try:
                folder = self._cache.fetch(manifest, names, hold=hold, progress=progress)
            except FileNotFoundError:  # it was replaced, or deleted
                self._manifests.pop(manifest.key, None)
                if not is_first:
                    raise
            else:
                return folder / path.name if _is_file_key(path) else folder
        raise FileNotFoundError(2, os.strerror(2), str(path))

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
        folder = self.dataset(dataset_id)
        if self._cache is None:
            return folder
        names = () if with_images else (dataset_index.INDEX_FILE,)
        try:
            copy = self.fetch(folder, *names, hold=hold, progress=progress)
            for version in versions:
                labels = label_versions.path_of(copy, version)
                if version != label_versions.UPLOADED and not labels.exists():
                    file = self.fetch(label_versions.path_of(folder, version))
                    labels.parent.mkdir(mode=0o700, exist_ok=True)
                    with contextlib.suppress(FileExistsError):  # another process was faster
                        os.link(file, labels)
        except FileNotFoundError as error:
            raise DatasetUnavailable.missing_files() from error
        return copy

    def find_dataset(self, dataset_id: uuid.UUID) -> Path | None:
        """The folder of a data set with its index, without asking the database; None where there is no ready one."""
        folder = self.dataset(dataset_id)
        if self._cache is None:
            return folder if dataset_index.is_ready(folder) else None
        if self._manifest(folder, believed_s=MANIFEST_S) is None:
            return None
        try:
            return self.fetch_dataset(dataset_id)
        except DatasetUnavailable:
            return None

    @contextlib.contextmanager
    def reading(self, dataset_id: uuid.UUID, name: str) -> Iterator[ReadAt]:
        """Read a few bytes of a file of a data set, without a copy of all of it; raises as `fetch` does."""
        path = self.dataset(dataset_id) / name
        if self._cache is not None:
            manifest = self._manifest(path.parent)
            if manifest is None or name not in manifest.files:
                raise FileNotFoundError(2, os.strerror(2), str(path))
            if not self._cache.has(manifest, name):
                store = self._cache.store
                yield lambda start, length: store.read_range(manifest, name, start, length)
                return
            path = self.fetch(path.parent, name) / name
        with path.open("rb") as file:
            yield lambda start, length: os.pread(file.fileno(), length, start)

    def artifacts(self, job_id: uuid.UUID) -> dict[str, DownloadableFile]:
        """The artifacts of the newest attempt that has any, by name."""
        if self._cache is None:
            for attempt in self.attempts(job_id):
                folder = attempt / ARTIFACTS
                paths = sorted(p for p in folder.iterdir() if p.is_file()) if folder.is_dir() else []
                if paths:
                    return {p.name: _on_disk(p) for p in paths if not p.name.startswith(".") and ".tmp" not in p.name}
            return {}
        for folder in self._published_attempts(job_id, ARTIFACTS):
            if (manifest := self._manifest(folder)) is not None:
                return {
                    name: DownloadableFile(file.size, file.sha256, lambda f=folder, n=name: self.fetch(f, n) / n)  # type: ignore[misc]
                    for name, file in sorted(manifest.files.items())
                }
        return {}

    def find_artifact(self, job_id: uuid.UUID, name: str) -> Path | None:
        """The artifact of this name of the newest attempt that has it; None where none has."""
        if self._cache is None:
            paths = (attempt / ARTIFACTS / name for attempt in self.attempts(job_id))
            return next((path for path in paths if path.is_file()), None)
        for folder in self._published_attempts(job_id, ARTIFACTS):
            manifest = self._manifest(folder)
            if manifest is not None and name in manifest.files:
                return self.fetch(folder, name) / name
        return None

    def log_files(self, job_id: uuid.UUID) -> dict[int, Path]:
        """The log of each attempt by its fence, the oldest first. A running one's is seconds old."""
        if self._cache is None:
            return {fence_of(folder): folder / LOG_FILE for folder in reversed(self.attempts(job_id))}
        files = {}
        for path in reversed(self._published_attempts(job_id, LOG_FILE)):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                files[fence_of(path.parent)] = self.fetch(path)
        return files

    def find_model_file(self, model_id: uuid.UUID, name: str) -> DownloadableFile | None:
        """A file of a model; None where it has none of this name."""
        path = self.model(model_id)
        if self._cache is None:
            return _on_disk(path / name) if (path / name).is_file() else None
        manifest = self._manifest(path)
        if manifest is None or name not in manifest.files:
            return None
        return DownloadableFile(*manifest.files[name], lambda: self.fetch(path, name) / name)

    def models(self) -> dict[uuid.UUID, float]:
        """Ids of the published models, each with the time of its publication in seconds since 1970."""
        models = {}
        if self._cache is not None:
            for key, published in self._cache.store.keys("models").items():
                models[uuid.UUID(key.removeprefix("models/"))] = published
            return models
        for folder in (self.root / "models").iterdir():
            try:
                models[uuid.UUID(folder.name)] = folder.stat().st_mtime
            except (ValueError, FileNotFoundError):
                continue  # not a model, or just deleted
        return models

    def find_deleted_models(self, model_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
        """Those of the models that are not published any more."""
        if self._cache is None:
            return [model_id for model_id in model_ids if not self.model(model_id).is_dir()]
        there = self.models()
        return [model_id for model_id in model_ids if model_id not in there]

    # --- Publishing and deleting

    def stage(self, source: Path, target: Path, progress: Progress | None = None) -> Staged:
        """Prepare a complete, synced file or folder for its publication at `target`; with an object store, upload it.

        Raises:
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        if self._cache is None:
            return Staged(source, target)
        return Staged(source, target, self._cache, self._cache.store.upload(self._key(target), source, progress))

    @contextlib.contextmanager
    def new_labels(self, dataset_id: uuid.UUID, version: int) -> Iterator[Path]:
        """A folder to write the file of a new version of labels into; it is published when the block ends."""
        folder = self.dataset(dataset_id)
        if self._cache is None:
            yield folder
            return
        with self.scratch() as scratch:
            yield scratch
            # Not kept here: until the version has a row, another process may publish it anew.
            target = label_versions.path_of(folder, version)
            store = self._cache.store
            store.publish(store.upload(self._key(target), label_versions.path_of(scratch, version)))

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the file system of the data folder."""
        folder = self.root / SCRATCH / uuid.uuid4().hex
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish_copy(self, source: Path, target: Path) -> None:
        """Publish a file that goes on being written, or a folder under its own name; only with an object store.

        Raises:
            FileNotFoundError: The source is gone.
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        assert self._cache is not None, "without an object store it is where it belongs"
        with self.scratch() as scratch:
            copy = scratch / source.name
            if source.is_dir():  # nobody changes its files: links keep them until they are uploaded
                shutil.copytree(source, copy, copy_function=_link)
            else:
                shutil.copyfile(source, copy)
            store = self._cache.store
            store.publish(store.upload(self._key(target), scratch if source.is_dir() else copy))

    def published(self, path: Path) -> list[Path]:
        """What is published below a path, as paths; without an object store nothing."""
        if self._cache is None:
            return []
        return sorted(self.root / key for key in self._cache.store.keys(self._key(path)))

    def remove(self, path: Path) -> int:
        """Delete a file or folder, wherever it lies, and what is published below it.

        While the object store cannot be reached, that is left to the next collection.

        Returns:
            Bytes freed, 0 when there was nothing.
        """
        freed = remove(path)
        if self._cache is not None:
            key = self._key(path)
            for known in [k for k in list(self._manifests) if k == key or k.startswith(f"{key}/")]:
                self._manifests.pop(known, None)
            try:
                freed += self._cache.store.delete(key)
            except StorageUnavailable as error:
                log.warning("%s is deleted later: %s", key, error.detail)
        return freed

    def download(self, path: Path, root: Path, names: Collection[str] | None = None) -> bool:
        """Write what is published at a path and below it to the same place below another root; with an object store.

        Args:
            path: As a method of this class names it.
            root: Of a copy of the data folder.
            names: Files of the path itself that are needed; None for all.

        Returns:
            Whether something is published at or below the path, and all of it was there to the end.
        """
        assert self._cache is not None, "without an object store files are copied"
        store, is_complete = self._cache.store, True
        manifests = [
            manifest for key in (self._key(path), *store.keys(self._key(path))) if (manifest := store.read(key))
        ]
        for manifest in manifests:
            published = self.root / manifest.key
            for name in manifest.files:
                if names is not None and published == path and name not in names:
                    continue
                target = root / _place_of(published, name).relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    store.download(manifest, name, target)
                except FileNotFoundError:
                    is_complete = False
        return bool(manifests) and is_complete

    def publish_tree(self, root: Path) -> None:
        """Publish everything in a copy of a data folder, which stays as it is; with an object store.

        Raises:
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        assert self._cache is not None, "without an object store files are moved to their places"
        store = self._cache.store
        files = ["datasets/*/labels/*.sqlite", "uploads/*.archive", f"jobs/*/attempt-*/{LOG_FILE}"]
        files += [f"weights/*{weights_folder.WEIGHTS}", f"weights/*{weights_folder.RECORD}"]  # the records last
        for pattern in (*files, "models/*", f"jobs/*/attempt-*/{ARTIFACTS}"):
            for source in sorted(root.glob(pattern)):
                store.publish(store.upload(source.relative_to(root).as_posix(), source))
        for source in sorted(root.glob(f"jobs/*/attempt-*/{CHECKPOINTS}/*")):
            self.publish_copy(source, self.root / source.relative_to(root))
        for source in sorted(root.glob("datasets/*")):
            with self.scratch() as scratch:
                ignored = shutil.ignore_patterns(label_versions.FOLDER)
                copy = shutil.copytree(source, scratch / source.name, copy_function=_link, ignore=ignored)
                store.publish(store.upload(source.relative_to(root).as_posix(), Path(copy)))

    def remove_published(self, path: Path) -> None:
        """Delete what is published at a path, and nothing of this host."""
        if self._cache is not None:
            with contextlib.suppress(StorageUnavailable):  # then it is collected with its job
                self._cache.store.delete(self._key(path))

    def collect(self, is_referenced: Callable[[str], bool], older_than_s: float) -> Garbage:
        """Delete what lies in the object store and nobody needs: see `ObjectStore.collect`."""
        return Garbage(0, 0) if self._cache is None else self._cache.store.collect(is_referenced, older_than_s)

    def sweep(self, older_than_s: float, resumable_older_than_s: float) -> None:
        """Delete from this host what the object store no longer has, and old work that was given up.

        One process of a host does it, every ten minutes; for the others, and without an object store, nothing is done.

        Args:
            older_than_s: Unfinished work was given up where nobody has changed it for so long.
            resumable_older_than_s: The same of resumable uploads, if that is more.
        """
        if self._cache is None:
            return
        mark = self.root / SCRATCH / ".swept"
        with contextlib.suppress(FileNotFoundError):
            if time.time() - mark.stat().st_mtime < SWEEP_S:
                return
        mark.touch(mode=0o600)
        try:
            self._cache.sweep()
            self._cache.make_room(0)
        except StorageUnavailable as error:
            log.warning("the cache was not compared with the object store: %s", error.detail)
        for folder, pattern in UNFINISHED.items():
            for path in (self.root / folder).glob(pattern):
                is_resumable = folder == "uploads" and path.is_dir()
                age_s = max(older_than_s, resumable_older_than_s) if is_resumable else older_than_s
                if path != mark and time.time() - _changed_at(path) > age_s:
                    remove(path)

    # --- Pretrained weights

    def installed_weights(self) -> list[WeightsRecord]:
        """The records of all installed weights, by name."""
        if self._cache is None:
            return weights_folder.installed(self.weights())
        records = (
            self.weights_record(p.name.removesuffix(".json"))
            for p in self.published(self.weights())
            if p.suffix == ".json"
        )
        return [record for record in records if record is not None]

    def weights_record(self, name: str) -> WeightsRecord | None:
        """The record of the weights called `name`; None where they are not installed."""
        if self._cache is None:
            return weights_folder.read_record(self.weights(), name)
        with contextlib.suppress(FileNotFoundError, ValueError):
            path = self.fetch(self.weights() / f"{weights_folder.check_name(name)}{weights_folder.RECORD}")
            return WeightsRecord.from_json(json.loads(path.read_bytes()))
        return None

    def fetch_weights(self, name: str | None) -> Path:
        """The folder of pretrained weights, in which those called `name` are if they are installed at all.

        Raises:
            StorageUnavailable: The object store cannot be reached.
        """
        folder = self.weights()
        record = None if self._cache is None or name is None else self.weights_record(name)
        if record is None or name is None:
            return folder
        with self._alone(folder):  # processes of one job look at the same moment
            if weights_folder.read_record(folder, name) != record:
                file = self.fetch(weights_folder.weights_path(folder, name))
                temporary = self.new_weights()
                os.link(file, temporary)
                weights_folder.install(folder, temporary, record)
        return folder

    def install_weights(self, file: Path, record: WeightsRecord) -> None:
        """Install a complete file of weights, in place of those of its name; see `weights_folder.install`."""
        folder = self.weights()
        if self._cache is None:
            weights_folder.install(folder, file, record)
            return
        with self.scratch() as scratch:
            written = scratch / "record"
            written.write_text(json.dumps(record.as_json()), encoding="utf-8")
            described = folder / f"{record.name}{weights_folder.RECORD}"
            staged = self.stage(file, weights_folder.weights_path(folder, record.name)), self.stage(written, described)
            self._cache.store.withdraw(self._key(described))  # as in a folder: first to go, last to come
            for one in staged:
                one.publish()

    def remove_weights(self, name: str) -> bool:
        """Delete the weights called `name`; whether they were installed."""
        was_local = weights_folder.remove(self.weights(), name)
        if self._cache is None:
            return was_local
        was_installed = self.weights_record(name) is not None
        for ending in (weights_folder.RECORD, weights_folder.WEIGHTS):
            self._cache.store.delete(self._key(self.weights() / f"{name}{ending}"))
        return was_installed

    # ---

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _manifest(self, path: Path, believed_s: float = float("inf")) -> Manifest | None:
        """What is published at a path; of data sets, models and label versions, which never change, it is stored."""
        assert self._cache is not None
        key = self._key(path)
        read_at, known = self._manifests.get(key, (0.0, None))
        if known is not None and time.monotonic() - read_at < believed_s:
            return known
        manifest = self._cache.store.read(key)
        if manifest is None:
            self._manifests.pop(key, None)
        elif key.startswith(("datasets/", "models/")):
            if len(self._manifests) >= MOST_MANIFESTS:
                self._manifests.clear()
            self._manifests[key] = time.monotonic(), manifest
        return manifest

    def _published_attempts(self, job_id: uuid.UUID, name: str) -> list[Path]:
        """Where attempts at a job have published what is called so, the newest first."""
        paths = [path for path in self.published(self.job(job_id)) if path.name == name]
        return sorted(paths, key=lambda path: fence_of(path.parent), reverse=True)

    @contextlib.contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        descriptor = os.open(folder.parent / SCRATCH, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _is_file_key(path: Path) -> bool:
    """Whether a path names one file that is published by itself, and no folder."""
    return path.suffix in (".sqlite", ".archive", ".jsonl", ".json", ".safetensors")


def _place_of(published: Path, name: str) -> Path:
    """Where a file of a publication lies in a data folder. A single file is the path; a folder may carry its name."""
    if _is_file_key(published):
        return published
    return published.parent / name if name.startswith(f"{published.name}/") else published / name


def _link(source: str, target: str) -> None:
    """Give a file a second name, or copy it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _is_uuid(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(name)) == name
    return False


def _on_disk(path: Path) -> DownloadableFile:
    return DownloadableFile(path.stat().st_size, None, lambda: path)


def _changed_at(path: Path) -> float:
    """When it, or anything in it, last changed."""
    changed = time.time()
    with contextlib.suppress(FileNotFoundError):  # another process deletes it
        changed = max([path.stat().st_mtime, *(entry.stat().st_mtime for entry in path.rglob("*"))])
    return changed


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
