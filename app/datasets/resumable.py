"""Resumable uploads on disk: what tus 1.0.0 asks of the server, without HTTP.

An upload is a folder `uploads/<id>/` with `facts.json`, which never changes, and `data`, whose length is the offset: a
process that is killed at any byte leaves an upload that goes on from there. A chunk that has a checksum counts when the
checksum agrees: until then `unverified` holds the offset at which it began. The lock is the kernel's, on the folder's
`facts.json`, so it ends with the process that holds it, and other API processes see it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app import local_files
from app.errors import NotReady, QueueFull, UploadLocked, UploadNotFound
from app.storage import Storage
from ml.formats import file_lock, fsync

FACTS, DATA, UNVERIFIED = "facts.json", "data", "unverified"
RETRY_S = 10


class ResumableUpload(NamedTuple):
    """An upload as it is on disk.

    Attributes:
        id: Names the folder.
        folder: Where it is.
        length: Bytes of the complete archive.
        offset: Bytes that have arrived.
        metadata: The client's Upload-Metadata, as it was sent.
        expires_at: When it is deleted unless more arrives, in seconds since 1970.
    """

    id: uuid.UUID
    folder: Path
    length: int
    offset: int
    metadata: str
    expires_at: float

    @property
    def data(self) -> Path:
        """The file of the bytes that have arrived."""
        return self.folder / DATA


def create(files: Storage, length: int, metadata: str, *, ttl_s: float, most: int) -> ResumableUpload:
    """Begin an upload, on disk when this returns; expired ones are deleted first.

    Args:
        files: The data folder.
        length: Bytes of the complete archive.
        metadata: The client's Upload-Metadata.
        ttl_s: Seconds after the last byte until it expires.
        most: Unfinished uploads at the same time.

    Raises:
        QueueFull: There are `most` already.
    """
    if len(_remove_expired(files, ttl_s)) >= most:
        detail = f"{most} uploads are unfinished; finish or delete one."
        raise QueueFull(detail, code="too_many_uploads", retry_after_s=RETRY_S)
    upload_id = uuid.uuid4()
    folder = files.resumable(upload_id)
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(mode=0o700)
    try:
        (temporary / DATA).touch(0o600)
        local_files.write_atomic(temporary / FACTS, json.dumps({"length": length, "metadata": metadata}).encode())
        local_files.publish(temporary, folder)
    except BaseException:
        local_files.remove(temporary)
        raise
    return read(files, upload_id, ttl_s)


def read(files: Storage, upload_id: uuid.UUID, ttl_s: float) -> ResumableUpload:
    """The upload; UploadNotFound where there is none, or where it has expired."""
    folder = files.resumable(upload_id)
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_bytes())
        status = (folder / DATA).stat()
        offset = _unverified_from(folder)
        offset = status.st_size if offset is None else offset
    except FileNotFoundError:
        raise UploadNotFound(
            "There is no upload with this id; it may have been finished, deleted or expired."
        ) from None
    upload = ResumableUpload(
        upload_id, folder, facts["length"], offset, facts["metadata"], max(status.st_mtime, _created(folder)) + ttl_s
    )
    if upload.expires_at <= time.time():
        with contextlib.suppress(UploadLocked, UploadNotFound), lock(files, upload_id):
            local_files.remove(folder)
        raise UploadNotFound("This upload has expired; begin it again.")
    return upload


def sync(upload: ResumableUpload) -> None:
    """Return when what the offset counts is on the disk, so that it may be told."""
    fsync.flush(upload.data)


@contextlib.contextmanager
def lock(files: Storage, upload_id: uuid.UUID) -> Iterator[None]:
    """Hold the upload alone.

    Raises:
        UploadLocked: Another request writes to it, finishes it or deletes it.
        UploadNotFound: There is none.
    """
    try:
        descriptor = os.open(files.resumable(upload_id) / FACTS, os.O_RDONLY)
    except FileNotFoundError:
        raise UploadNotFound(
            "There is no upload with this id; it may have been finished, deleted or expired."
        ) from None
    try:
        if not file_lock.try_lock(descriptor):
            detail = "Another request is writing to this upload, or finishing it."
            raise UploadLocked(detail, retry_after_s=1)
        if not os.fstat(descriptor).st_nlink or not files.resumable(upload_id).is_dir():
            raise UploadNotFound("This upload was finished or deleted.")
        yield
    finally:
        os.close(descriptor)


def drop_unverified(folder: Path) -> None:
    """Under the lock: cut off a chunk whose checksum nobody has compared, since its request ended before."""
    offset = _unverified_from(folder)
    if offset is not None:
        os.truncate(folder / DATA, offset)
        fsync.flush(folder / DATA)
        mark_verified(folder)


def mark_unverified(folder: Path, offset: int) -> None:
    """Under the lock: bytes from `offset` on do not count until `mark_verified`."""
    local_files.write_atomic(folder / UNVERIFIED, str(offset).encode())


def mark_verified(folder: Path) -> None:
    """Under the lock: all bytes count."""
    (folder / UNVERIFIED).unlink(missing_ok=True)
    fsync.flush(folder)


def check_complete(upload: ResumableUpload) -> None:
    """Raise NotReady unless every byte has arrived."""
    if upload.offset != upload.length:
        detail = f"The upload has {upload.offset} of {upload.length} bytes; send the rest first."
        raise NotReady(detail, code="upload_incomplete")


def _unverified_from(folder: Path) -> int | None:
    """The offset at which a chunk began whose checksum was not compared; None where there is no such chunk."""
    try:
        return int((folder / UNVERIFIED).read_bytes())
    except FileNotFoundError:
        return None


def _created(folder: Path) -> float:
    return (folder / FACTS).stat().st_mtime


def _remove_expired(files: Storage, ttl_s: float) -> list[uuid.UUID]:
    """Delete expired uploads; the ids of the others."""
    living = []
    for folder in files.resumable(uuid.UUID(int=0)).parent.iterdir():
        if not folder.is_dir():
            continue
        try:
            living.append(read(files, uuid.UUID(folder.name), ttl_s).id)
        except (ValueError, UploadNotFound):
            continue  # a temporary folder, or one that is gone now
    return living
