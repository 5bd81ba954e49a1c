"""This host's copies of what lies in the object store: verified, shared by its processes, the oldest use out first.

    cache/ID/NAME     a file of the publication ID; it has its name once it is complete
    cache/ID.json     the key of the publication; its time is that of the last use, a lock on it says that it is in use

The id of a publication is never used again, so a copy is never wrong. What a process computes of a data set lies beside
its files and goes with them. Locks are the kernel's: they end with the process that holds them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from app.object_store import Manifest, ObjectStore, Progress
from ml.formats import file_lock

log = logging.getLogger(__name__)

TOUCH_S, IDLE_S = 20.0, 60.0  # the time of the last use is that exact; what was used so lately is not removed
WAIT_S = 0.2  # between looks at a download of another process
KEY = ".json"


class ObjectCache:
    """The cache of one host.

    Args:
        store: Where files come from.
        folder: The cache, on the file system of the data folder.
        limit_bytes: What it may hold. What is in use stays, even if that alone is more.
    """

    def __init__(self, store: ObjectStore, folder: Path, limit_bytes: int) -> None:
        self.store = store
        self.folder = folder
        self._limit = limit_bytes
        self._held: dict[str, int] = {}

    def fetch(
        self, manifest: Manifest, names: Sequence[str] = (), *, hold: bool = False, progress: Progress | None = None
    ) -> Path:
        """The folder of a publication, in which some of its files are.

        Args:
            manifest: The publication.
            names: The files that are needed; none for all.
            hold: Whether they are in use until this process ends.
            progress: Told how many bytes are there; what it raises ends the wait.

        Raises:
            FileNotFoundError: The publication was replaced or deleted.
            StorageUnavailable: The store cannot be reached.
            OSError: The disk is full.
        """
        entry, needed = self.folder / manifest.id, list(names or manifest.files)
        if not hold and all((entry / name).exists() for name in needed):
            self._touch(manifest.id)
            return entry
        lock = self._lock_shared(manifest)
        try:
            entry.mkdir(mode=0o700, exist_ok=True)
            with self._downloading(entry, progress):
                missing = [name for name in needed if not (entry / name).exists()]
                if missing:
                    total = sum(manifest.files[name].size for name in missing)
                    self.make_room(total)
                    done = 0
                    for name in missing:
                        self._download(manifest, name, entry, progress, done, total)
                        done += manifest.files[name].size
        except BaseException:
            os.close(lock)
            raise
        if hold and manifest.id not in self._held:
            self._held[manifest.id] = lock
        else:
            os.close(lock)
        return entry

    def has(self, manifest: Manifest, name: str) -> bool:
        """Whether a file of a publication is here."""
        return (self.folder / manifest.id / name).exists()

    def adopt(self, manifest: Manifest, source: Path) -> None:
        """Move what this host has just published into the cache; nothing where that was done before."""
        entry = self.folder / manifest.id
        lock = self._lock_shared(manifest)
        try:
            if entry.exists() or not source.exists():
                return
            if source.is_dir():
                source.rename(entry)
            else:
                entry.mkdir(mode=0o700)
                source.rename(entry / next(iter(manifest.files)))
        finally:
            os.close(lock)
        self.make_room(0)

    def make_room(self, needed: int) -> None:
        """Remove the least recently used entries until so many bytes more fit."""
        entries = sorted((used, name, _size(self.folder / name)) for name, used in self._entries())
        total = sum(size for _, _, size in entries)
        for used, name, size in entries:
            if total + needed <= self._limit:
                return
            if time.time() - used > IDLE_S and self._remove(name):
                log.info("removed from the cache: %s, %d bytes", name, size)
                total -= size
        if total + needed > self._limit:
            log.warning("the cache holds %d bytes in use, and %d more are needed", total, needed)

    def sweep(self) -> int:
        """Remove copies of what was replaced or deleted in the store, unless they are in use; how many."""
        removed = 0
        for name, used in self._entries():
            if time.time() - used <= IDLE_S:
                continue
            try:
                key = json.loads((self.folder / f"{name}{KEY}").read_bytes())["key"]
            except (FileNotFoundError, ValueError, KeyError):
                continue
            current = self.store.read(key)
            if (current is None or current.id != name) and self._remove(name):
                removed += 1
        return removed

    # --- Entries and their locks

    def _entries(self) -> list[tuple[str, float]]:
        """The id of each entry, and when it was used last."""
        entries = []
        for path in self.folder.glob(f"*{KEY}"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it
                entries.append((path.name.removesuffix(KEY), path.stat().st_mtime))
        return entries

    def _touch(self, name: str) -> None:
        path = self.folder / f"{name}{KEY}"
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > TOUCH_S:
                os.utime(path)

    def _lock_shared(self, manifest: Manifest) -> int:
        """A descriptor that holds the lock of an entry; the entry is begun if there is none."""
        path = self.folder / f"{manifest.id}{KEY}"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:  # not removed meanwhile
                if not os.fstat(descriptor).st_size:
                    os.write(descriptor, json.dumps({"key": manifest.key}).encode())
                os.utime(path)
                return descriptor
            os.close(descriptor)

    def _remove(self, name: str) -> bool:
        """Remove an entry; False where it is in use."""
        path, entry = self.folder / f"{name}{KEY}", self.folder / name
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not file_lock.try_lock(descriptor):
                return False
            trash = self.folder / f".{name}.{uuid.uuid4().hex}.trash"
            with contextlib.suppress(FileNotFoundError):
                entry.rename(trash)
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
        shutil.rmtree(trash, ignore_errors=True)
        return True

    @contextlib.contextmanager
    def _downloading(self, entry: Path, progress: Progress | None) -> Iterator[None]:
        """Hold the right to download files of an entry, which one process has at a time."""
        descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if progress is None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            else:
                while not file_lock.try_lock(descriptor):
                    progress(0, 1)
                    time.sleep(WAIT_S)
            yield
        finally:
            os.close(descriptor)

    def _download(
        self, manifest: Manifest, name: str, entry: Path, progress: Progress | None, done: int, total: int
    ) -> None:
        size = manifest.files[name].size
        if shutil.disk_usage(entry).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        target = entry / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")

        def report(received: int, _: int) -> None:
            assert progress is not None, "it is called where there is one"
            progress(done + received, total)

        try:
            self.store.download(manifest, name, temporary, None if progress is None else report)
            temporary.chmod(0o600)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)


def _size(entry: Path) -> int:
    total = 0
    for path in entry.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
