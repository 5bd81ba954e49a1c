"""Files in an S3-compatible object store. One object appears completely or not at all, but several are never renamed.

What is published, a file or a folder, is a number of objects under a name that nobody else uses, and a manifest that is
written last: it exists if and only if its manifest does. The manifest names each file with its size and its SHA-256.

    manifests/KEY.json          {"id": ID, "files": {NAME: {"size": ..., "sha256": ...}}}
    objects/KEY/ID/NAME         ID is made anew for every publication, so a manifest that is replaced changes no object

Nothing of the service is known here. A reader that holds an old manifest meets FileNotFoundError, and reads it anew.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import functools
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from app.errors import InsufficientStorage, StorageUnavailable
from app.settings import Settings
from ml.formats import fsync

log = logging.getLogger(__name__)

PART_BYTES, MOST_PARTS = 8 * 1024 * 1024, 9_000  # of an upload in parts; S3 takes 10,000
PARTS_AT_ONCE = 4
TRIES = 2  # of a request that was not answered
READ_TIMEOUT_S = 10.0  # without a byte
STALLED_S = 60.0  # without a part
SMALL_S, PROBE_TIMEOUT_S, LISTING_S = 8.0, 4.0, 60.0  # how long a manifest, a probe and a listing may take in all
PROGRESS_S = 0.5
RETRY_AFTER_S, FULL_RETRY_AFTER_S = 5, 60
PROBE_S = 2.0  # for so long the answer to a probe counts
NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "507"}
OBJECT = re.compile(r"(?P<key>.+?)/(?P<id>[0-9a-f]{32})/(?P<name>.+)")
MANIFESTS, OBJECTS, ENDING = "manifests", "objects", ".json"

Progress = Callable[[int, int], None]
"""Called every half second with the bytes that are done and all bytes; what it raises ends the transfer."""


class PublishedFile(NamedTuple):
    """A file as its manifest names it: bytes, and SHA-256 in hexadecimal."""

    size: int
    sha256: str


class Manifest(NamedTuple):
    """What is published under a key.

    Attributes:
        key: Its name, such as `models/<id>`.
        id: Of this publication, 32 hexadecimal digits.
        files: By name. Of a single file that of its key.
    """

    key: str
    id: str
    files: dict[str, PublishedFile]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def as_json(self) -> bytes:
        """The manifest as it is stored."""
        return json.dumps({"id": self.id, "files": {n: f._asdict() for n, f in self.files.items()}}).encode()


class Garbage(NamedTuple):
    """What a collection has deleted."""

    publications: int
    objects: int


class ObjectStore:
    """A bucket, or what lies below a prefix in it.

    Args:
        settings: Address and credentials of the store. Nothing is opened before the first request.
    """

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.object_store)
        self._base = f"{parts.netloc}{parts.path}".rstrip("/")
        self._settings = settings
        self._opening = threading.Lock()
        self._opened: tuple[int, Any] | None = None  # for which process
        self._probed: tuple[float, str | None] = float("-inf"), None

    # --- Publishing

    def upload(self, key: str, source: Path, progress: Progress | None = None) -> Manifest:
        """Upload a file, or all files of a folder; readers see nothing of it before `publish`.

        Args:
            key: Under which it will be published.
            source: Must not change meanwhile.
            progress: Told how far it is.

        Raises:
            StorageUnavailable, InsufficientStorage: The store cannot be reached, or is full.
        """
        if source.is_file():
            names = {source: PurePosixPath(key).name}
        else:
            names = {path: path.relative_to(source).as_posix() for path in sorted(source.rglob("*")) if path.is_file()}
        manifest = Manifest(key, uuid.uuid4().hex, {})
        done, total = 0, sum(path.stat().st_size for path in names)
        for path, name in names.items():
            size, digest = fsync.hash_file(path)
            self._transfer(
                "put_file",
                str(path),
                self._object(manifest, name),
                progress=None if progress is None else functools.partial(_report, progress, done, total),
                chunksize=max(PART_BYTES, -(-size // MOST_PARTS)),
                max_concurrency=PARTS_AT_ONCE,
            )
            manifest.files[name] = PublishedFile(size, digest)
            done += size
        return manifest

    def publish(self, manifest: Manifest) -> None:
        """Make visible what was uploaded, in place of what was published under its key; may be repeated."""
        before = self.read(manifest.key)
        with _translated():
            self._call("pipe_file", self._manifest(manifest.key), manifest.as_json())
        if before is not None and before.id != manifest.id:
            with contextlib.suppress(StorageUnavailable):  # then it is collected later
                self._delete_objects(f"{before.key}/{before.id}")

    def withdraw(self, key: str) -> None:
        """Delete what is published under a key, and nothing that is about to be."""
        manifest = self.read(key)
        if manifest is None:
            return
        with _translated(), contextlib.suppress(FileNotFoundError):
            self._call("rm_file", self._manifest(key))
        self._delete_objects(f"{key}/{manifest.id}")

    def delete(self, key: str) -> int:
        """Delete what is published under a key and below it, the manifests first; how many bytes."""
        keys = [key, *self.keys(key)]
        with _translated():
            for published in keys:
                with contextlib.suppress(FileNotFoundError):
                    self._call("rm_file", self._manifest(published))
        return self._delete_objects(key)

    # --- Reading

    def read(self, key: str, timeout_s: float = SMALL_S) -> Manifest | None:
        """What is published under a key; None where nothing is."""
        try:
            with _translated():
                facts = json.loads(self._call("cat_file", self._manifest(key), timeout_s=timeout_s))
        except FileNotFoundError:
            return None
        return Manifest(key, facts["id"], {name: PublishedFile(**file) for name, file in facts["files"].items()})

    def keys(self, prefix: str) -> dict[str, float]:
        """Keys below a prefix, such as `models`, each with the time of its publication in seconds since 1970."""
        folder = f"{self._base}/{MANIFESTS}/"
        with _translated():
            listed = self._call("find", f"{folder}{prefix}".rstrip("/"), detail=True, timeout_s=LISTING_S)
        return {
            path.removeprefix(folder).removesuffix(ENDING): _modified(info)
            for path, info in listed.items()
            if path.endswith(ENDING)
        }

    def download(self, manifest: Manifest, name: str, target: Path, progress: Progress | None = None) -> None:
        """Write a file of a manifest to `target`, verified.

        Raises:
            FileNotFoundError: The object is gone: the manifest was replaced or deleted.
            StorageUnavailable: The store cannot be reached, or what it sent is not what the manifest says.
            OSError: The local disk is full.
        """
        expected = manifest.files[name]
        self._transfer(
            "get_file", self._object(manifest, name), str(target), progress=progress, max_concurrency=PARTS_AT_ONCE
        )
        size, digest = fsync.hash_file(target)
        fsync.flush(target)
        if (size, digest) != expected:
            raise StorageUnavailable("A file from the object store is damaged.", retry_after_s=RETRY_AFTER_S)

    def read_range(self, manifest: Manifest, name: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on; raises as `download` does."""
        with _translated():
            data: bytes = self._call("cat_file", self._object(manifest, name), start=start, end=start + length)
        return data

    # --- Whether it works, and what nobody needs

    def fault(self) -> str | None:
        """Why the store cannot be used, a sentence without secrets; None while it can. Asked every two seconds."""
        probed, fault = self._probed
        if time.monotonic() - probed > PROBE_S:
            try:
                self.read("probe", timeout_s=PROBE_TIMEOUT_S)
                fault = None
            except StorageUnavailable as error:
                fault = error.detail
            self._probed = time.monotonic(), fault
        return fault

    def collect(self, is_referenced: Callable[[str], bool], older_than_s: float) -> Garbage:
        """Delete publications that nothing refers to, and objects that no manifest names.

        Args:
            is_referenced: Whether a key must stay.
            older_than_s: Only what is older is deleted; what is younger may be about to be published or referred to.
        """
        before = time.time() - older_than_s
        published = self.keys("")
        orphans = [key for key, modified in published.items() if modified < before and not is_referenced(key)]
        for key in orphans:
            self.delete(key)
        folder = f"{self._base}/{OBJECTS}/"
        with _translated():
            listed = self._call("find", folder.rstrip("/"), detail=True, timeout_s=LISTING_S)
        youngest: dict[tuple[str, str], float] = {}
        paths: dict[tuple[str, str], list[str]] = {}
        for path, info in listed.items():
            if match := OBJECT.fullmatch(path.removeprefix(folder)):
                of = match["key"], match["id"]
                youngest[of] = max(youngest.get(of, 0.0), _modified(info))
                paths.setdefault(of, []).append(path)
        counts = collections.Counter(key for key, _ in youngest)
        deleted = 0
        for (key, publication), modified in youngest.items():
            if modified >= before or (key in published and counts[key] == 1):
                continue  # young, or the only one under its manifest, which names it
            current = self.read(key)
            if current is None or current.id != publication:
                deleted += self._delete_paths(paths[key, publication])
        return Garbage(len(orphans), deleted)

    # --- Paths and the file system

    def _manifest(self, key: str) -> str:
        return f"{self._base}/{MANIFESTS}/{key}{ENDING}"

    def _object(self, manifest: Manifest, name: str) -> str:
        return f"{self._base}/{OBJECTS}/{manifest.key}/{manifest.id}/{name}"

    def _delete_objects(self, prefix: str) -> int:
        with _translated():
            listed = self._call("find", f"{self._base}/{OBJECTS}/{prefix}", detail=True, timeout_s=LISTING_S)
        self._delete_paths(list(listed))
        return sum(int(info["size"]) for info in listed.values())

    def _delete_paths(self, paths: list[str]) -> int:
        with _translated():
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self._call("rm_file", path)
        return len(paths)

    def _transfer(self, method: str, source: str, target: str, progress: Progress | None, **options: Any) -> None:
        """Copy a file to or from the store, while somebody is told how far it is and may stop it."""
        from fsspec.callbacks import Callback

        count, moved, moved_at = Callback(), 0, time.monotonic()
        with _translated():
            store = self._fs
            copying = getattr(store, f"_{method}")(source, target, callback=count, **options)
            future = asyncio.run_coroutine_threadsafe(copying, store.loop)
            try:
                while wait([future], PROGRESS_S).not_done:
                    if count.value != moved:
                        moved, moved_at = count.value, time.monotonic()
                    elif time.monotonic() - moved_at > STALLED_S:
                        raise _unavailable("a transfer has stalled")  # noqa: TRY301
                    if progress is not None:
                        progress(moved, count.size or 0)
                future.result()
            except BaseException:
                future.cancel()
                raise

    def _call(self, method: str, *arguments: Any, timeout_s: float = SMALL_S, **options: Any) -> Any:
        """Call a method of the file system that ends in time."""
        from fsspec.asyn import sync

        store = self._fs
        return sync(store.loop, getattr(store, f"_{method}"), *arguments, timeout=timeout_s, **options)

    @property
    def _fs(self) -> Any:
        """The file system of this process: its thread and its connections do not outlive a fork."""
        with self._opening:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), _open(self._settings)
            return self._opened[1]


def _open(settings: Settings) -> Any:
    from s3fs import S3FileSystem

    for chatty in ("botocore", "aiobotocore", "s3fs", "fsspec", "asyncio"):  # their debug messages have headers in them
        logging.getLogger(chatty).setLevel(logging.WARNING)
    secret = settings.object_store_secret
    store = S3FileSystem(
        key=settings.object_store_key or None,
        secret=secret.get_secret_value() if secret else None,
        endpoint_url=settings.object_store_endpoint or None,
        client_kwargs={"region_name": settings.object_store_region} if settings.object_store_region else {},
        config_kwargs={
            "connect_timeout": settings.connect_timeout_s,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1},  # its file system repeats them
        },
        use_listings_cache=False,
        skip_instance_cache=True,
        max_concurrency=PARTS_AT_ONCE,
    )
    store.retries = TRIES
    return store


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn whatever the store's client raises into a problem; only FileNotFoundError of a missing object stays.

    What it says names the fault and never the request, which has the key of the store.
    """
    try:
        yield
    except (StorageUnavailable, InsufficientStorage):
        raise
    except OSError as error:
        code = _code(error)
        if code in FULL:
            raise InsufficientStorage("The object store is full.", retry_after_s=FULL_RETRY_AFTER_S) from None
        if (isinstance(error, FileNotFoundError) and code != "NoSuchBucket") or error.errno in NO_SPACE:
            raise
        raise _unavailable(code or type(error).__name__) from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "fsspec", "s3fs"):
            raise
        raise _unavailable(type(error).__name__) from None


def _unavailable(reason: str) -> StorageUnavailable:
    return StorageUnavailable(f"The object store does not serve: {reason}.", retry_after_s=RETRY_AFTER_S)


def _code(error: BaseException) -> str | None:
    """The S3 error code behind an error of the client."""
    response = getattr(error.__cause__ or error.__context__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(code) if code else None


def _report(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _modified(info: dict[str, Any]) -> float:
    return float(info["LastModified"].timestamp())
