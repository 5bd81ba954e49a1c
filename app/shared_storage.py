"""Files that hosts share by an object store: finished ones are published to it and read from copies (decisions/0021).

The path below the data folder is the key of what is published there. The data folder itself holds work that is not
finished, and the copies of this host.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from app import local_files
from app.errors import DatasetUnavailable, StorageUnavailable
from app.local_files import ReadAt
from app.object_cache import ObjectCache
from app.object_store import Garbage, Manifest, ObjectStore, Progress
from app.settings import Settings
from app.storage import ARTIFACTS, CHECKPOINTS, LOG_FILE, DownloadableFile, Staged, Storage, fence_of
from ml.formats import dataset_index, file_lock, label_versions, weights_folder
from ml.formats.weights_folder import WeightsRecord

log = logging.getLogger(__name__)

CACHE, SCRATCH = "cache", "scratch"
UNFINISHED = {"datasets": "*.tmp-*", "jobs": "*", "uploads": "*", SCRATCH: "*", CACHE: ".*"}  # what a sweep looks at
SWEEP_S = 600.0  # a host's cache is compared with the store this often
MANIFEST_S = 2.0  # for so long it is believed that a data set is still there
MOST_MANIFESTS = 4096


class MixedStorage(RuntimeError):
    """The data folder holds finished files although there is an object store; the message says what to do."""


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings describe; nothing is read or created."""
    return SharedStorage(settings) if settings.object_store else Storage(settings.data_dir)


class Uploaded(Staged):
    """A file or folder that is in the object store, and not visible yet.

    Args:
        source: It, on this host.
        target: Where readers will expect it.
        manifest: What was uploaded.
        cache: Has the object store, and takes the source over once it is published.
    """

    def __init__(self, source: Path, target: Path, manifest: Manifest, cache: ObjectCache) -> None:
        super().__init__(source, target)
        self._manifest, self._cache = manifest, cache

    def publish(self) -> None:
        self._cache.store.publish(self._manifest)
        self._cache.adopt(self._manifest, self._source)


class SharedStorage(Storage):
    """The storage of a host whose finished files are in an object store; what they all do is written at `Storage`.

    Args:
        settings: The data folder, the object store, and how large the cache may be.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.data_dir)
        self._store = ObjectStore(settings)
        self._cache = ObjectCache(self._store, self.root / CACHE, settings.cache_bytes)
        self._manifests: dict[str, tuple[float, Manifest]] = {}  # of what never changes, and when it was read

    def create(self) -> None:
        super().create()
        for name in (CACHE, SCRATCH):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        local = [p for name in ("datasets", "models") for p in (self.root / name).iterdir() if _is_uuid(p.name)]
        if local:
            raise MixedStorage(
                f"{self.root} holds {len(local)} data sets and models from before DENLL_OBJECT_STORE was set: back the "
                "service up without it, and restore the backup with it and another data folder"
            )
        if (fault := self.fault()) is not None:  # its client takes a second to load
            log.warning("%s", fault)

    def fault(self) -> str | None:
        return self._store.fault()

    # --- Reading what is published

    def fetch(self, path: Path, *names: str, hold: bool = False, progress: Progress | None = None) -> Path:
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
        folder = self.dataset(dataset_id)
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
        if self._manifest(self.dataset(dataset_id), believed_s=MANIFEST_S) is None:
            return None
        try:
            return self.fetch_dataset(dataset_id)
        except DatasetUnavailable:
            return None

    @contextlib.contextmanager
    def reading(self, dataset_id: uuid.UUID, name: str) -> Iterator[ReadAt]:
        """Read ranges of the object, or of the copy where this host has one."""
        folder = self.dataset(dataset_id)
        manifest = self._manifest(folder)
        if manifest is None or name not in manifest.files:
            raise FileNotFoundError(2, os.strerror(2), str(folder / name))
        if self._cache.has(manifest, name):
            with local_files.reading(self.fetch(folder, name) / name) as read:
                yield read
        else:
            yield lambda start, length: self._store.read_range(manifest, name, start, length)

    def artifacts(self, job_id: uuid.UUID) -> dict[str, DownloadableFile]:
        for folder in self._published_attempts(job_id, ARTIFACTS):
            if (manifest := self._manifest(folder)) is not None:
                return {name: self._downloadable(folder, manifest, name) for name in sorted(manifest.files)}
        return {}

    def find_artifact(self, job_id: uuid.UUID, name: str) -> Path | None:
        for folder in self._published_attempts(job_id, ARTIFACTS):
            manifest = self._manifest(folder)
            if manifest is not None and name in manifest.files:
                return self.fetch(folder, name) / name
        return None

    def log_files(self, job_id: uuid.UUID) -> dict[int, Path]:
        files = {}
        for path in reversed(self._published_attempts(job_id, LOG_FILE)):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                files[fence_of(path.parent)] = self.fetch(path)
        return files

    def find_model_file(self, model_id: uuid.UUID, name: str) -> DownloadableFile | None:
        folder = self.model(model_id)
        manifest = self._manifest(folder)
        if manifest is None or name not in manifest.files:
            return None
        return self._downloadable(folder, manifest, name)

    def models(self) -> dict[uuid.UUID, float]:
        keys = self._store.keys("models")
        return {uuid.UUID(key.removeprefix("models/")): published for key, published in keys.items()}

    def find_deleted_models(self, model_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
        there = self.models()
        return [model_id for model_id in model_ids if model_id not in there]

    def published(self, path: Path) -> list[Path]:
        return sorted(self.root / key for key in self._store.keys(self._key(path)))

    # --- Publishing

    def stage(self, source: Path, target: Path, progress: Progress | None = None) -> Staged:
        return Uploaded(source, target, self._store.upload(self._key(target), source, progress), self._cache)

    @contextlib.contextmanager
    def new_labels(self, dataset_id: uuid.UUID, version: int) -> Iterator[Path]:
        with self.scratch() as scratch:
            yield scratch
            # No copy stays here: until the version has a row, another process may publish it anew.
            target = label_versions.path_of(self.dataset(dataset_id), version)
            self._store.publish(self._store.upload(self._key(target), label_versions.path_of(scratch, version)))

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
        """Publish a file that goes on being written, or a folder under its own name.

        Raises:
            FileNotFoundError: The source is gone.
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        with self.scratch() as scratch:
            copy = scratch / source.name
            if source.is_dir():  # nobody changes its files: links keep them until they are uploaded
                shutil.copytree(source, copy, copy_function=local_files.link_or_copy)
            else:
                shutil.copyfile(source, copy)
            self._store.publish(self._store.upload(self._key(target), scratch if source.is_dir() else copy))

    # --- Deleting

    def remove(self, path: Path) -> int:
        freed, key = super().remove(path), self._key(path)
        for known in [k for k in list(self._manifests) if k == key or k.startswith(f"{key}/")]:
            self._manifests.pop(known, None)
        try:
            freed += self._store.delete(key)
        except StorageUnavailable as error:
            log.warning("%s is deleted later: %s", key, error.detail)
        return freed

    def remove_published(self, path: Path) -> None:
        with contextlib.suppress(StorageUnavailable):  # then it is collected with its job
            self._store.delete(self._key(path))

    def collect(self, is_referenced: Callable[[str], bool], older_than_s: float) -> Garbage:
        """Delete what lies in the object store and nobody needs: see `ObjectStore.collect`."""
        return self._store.collect(is_referenced, older_than_s)

    def sweep(self, older_than_s: float, resumable_older_than_s: float) -> None:
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
                    local_files.remove(path)

    # --- Pretrained weights

    def installed_weights(self) -> list[WeightsRecord]:
        records = (
            self.weights_record(p.name.removesuffix(weights_folder.RECORD))
            for p in self.published(self.weights())
            if p.suffix == weights_folder.RECORD
        )
        return [record for record in records if record is not None]

    def weights_record(self, name: str) -> WeightsRecord | None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            path = self.fetch(self.weights() / f"{weights_folder.check_name(name)}{weights_folder.RECORD}")
            return WeightsRecord.from_json(json.loads(path.read_bytes()))
        return None

    def fetch_weights(self, name: str | None) -> Path:
        folder = self.weights()
        record = None if name is None else self.weights_record(name)
        if name is None or record is None:
            return folder
        with file_lock.lock_folder(self.root / SCRATCH):  # processes of one job look at the same moment
            if weights_folder.read_record(folder, name) != record:
                file = self.fetch(weights_folder.weights_path(folder, name))
                temporary = self.new_weights()
                os.link(file, temporary)
                weights_folder.install(folder, temporary, record)
        return folder

    def install_weights(self, file: Path, record: WeightsRecord) -> None:
        folder = self.weights()
        with self.scratch() as scratch:
            written = scratch / "record"
            written.write_text(json.dumps(record.as_json()), encoding="utf-8")
            described = folder / f"{record.name}{weights_folder.RECORD}"
            staged = self.stage(file, weights_folder.weights_path(folder, record.name)), self.stage(written, described)
            self._store.withdraw(self._key(described))  # as in a folder: first to go, last to come
            for one in staged:
                one.publish()

    def remove_weights(self, name: str) -> bool:
        super().remove_weights(name)
        was_installed = self.weights_record(name) is not None
        for ending in (weights_folder.RECORD, weights_folder.WEIGHTS):
            self._store.delete(self._key(self.weights() / f"{name}{ending}"))
        return was_installed

    # --- Backups

    def download(self, path: Path, root: Path, names: Collection[str] | None = None) -> bool:
        """Write what is published at a path and below it to the same place below another root.

        Args:
            path: As a method of this class names it.
            root: Of a copy of the data folder.
            names: Files of the path itself that are needed; None for all.

        Returns:
            Whether something is published at or below the path, and all of it was there to the end.
        """
        keys, is_complete = (self._key(path), *self._store.keys(self._key(path))), True
        manifests = [manifest for key in keys if (manifest := self._store.read(key))]
        for manifest in manifests:
            published = self.root / manifest.key
            for name in manifest.files:
                if names is not None and published == path and name not in names:
                    continue
                target = root / _place_of(published, name).relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._store.download(manifest, name, target)
                except FileNotFoundError:
                    is_complete = False
        return bool(manifests) and is_complete

    def publish_tree(self, root: Path) -> None:
        """Publish everything in a copy of a data folder, which stays as it is.

        Args:
            root: Of the copy.

        Raises:
            StorageUnavailable, InsufficientStorage: The object store cannot be reached, or is full.
        """
        files = ["datasets/*/labels/*.sqlite", "uploads/*.archive", f"jobs/*/attempt-*/{LOG_FILE}"]
        files += [f"weights/*{weights_folder.WEIGHTS}", f"weights/*{weights_folder.RECORD}"]  # the records last
        for pattern in (*files, "models/*", f"jobs/*/attempt-*/{ARTIFACTS}"):
            for source in sorted(root.glob(pattern)):
                self._store.publish(self._store.upload(source.relative_to(root).as_posix(), source))
        for source in sorted(root.glob(f"jobs/*/attempt-*/{CHECKPOINTS}/*")):
            self.publish_copy(source, self.root / source.relative_to(root))
        for source in sorted(root.glob("datasets/*")):
            with self.scratch() as scratch:
                ignored = shutil.ignore_patterns(label_versions.FOLDER)
                copy = scratch / source.name
                shutil.copytree(source, copy, copy_function=local_files.link_or_copy, ignore=ignored)
                self._store.publish(self._store.upload(source.relative_to(root).as_posix(), copy))

    # --- Keys and manifests

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _manifest(self, path: Path, believed_s: float = float("inf")) -> Manifest | None:
        """What is published at a path; of data sets, models and label versions, which never change, it is stored."""
        key = self._key(path)
        read_at, known = self._manifests.get(key, (0.0, None))
        if known is not None and time.monotonic() - read_at < believed_s:
            return known
        manifest = self._store.read(key)
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

    def _downloadable(self, folder: Path, manifest: Manifest, name: str) -> DownloadableFile:
        return DownloadableFile(*manifest.files[name], lambda: self.fetch(folder, name) / name)


def _is_file_key(path: Path) -> bool:
    """Whether a path names one file that is published by itself, and no folder."""
    return path.suffix in (".sqlite", ".archive", ".jsonl", ".json", ".safetensors")


def _place_of(published: Path, name: str) -> Path:
    """Where a file of a publication lies in a data folder. A single file is the path; a folder may carry its name."""
    if _is_file_key(published):
        return published
    return published.parent / name if name.startswith(f"{published.name}/") else published / name


def _is_uuid(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(name)) == name
    return False


def _changed_at(path: Path) -> float:
    """When it, or anything in it, last changed."""
    changed = time.time()
    with contextlib.suppress(FileNotFoundError):  # another process deletes it
        changed = max([path.stat().st_mtime, *(entry.stat().st_mtime for entry in path.rglob("*"))])
    return changed
