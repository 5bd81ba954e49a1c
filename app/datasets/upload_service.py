"""From an upload to a queued data set: receive the archive, check it, insert a row. A failure leaves nothing (INV10).

Three kinds of requests bring an archive: its bytes, a resumable upload, or a folder of this host. `_create_dataset`
does the rest for all: the bytes have a temporary name until they are checked, and then the one that the row refers to.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app import local_files, quotas
from app.datasets import archive_check, resumable, schemas, server_folders, service, uploads
from app.datasets.uploads import FinishedUpload, ReceivedUpload, ServerFolder, UploadWriter
from app.db import session as db
from app.errors import QueueFull
from app.http import access, bodies, problems
from app.http.capacity import Capacity
from app.http.idempotency import IdempotentRequest, StoredResponse, request_hash
from app.settings import Settings
from app.storage import Storage
from ml.formats import fsync
from ml.formats.fsync import FileHash

RETRY_S = 10


def upload_capacity(settings: Settings) -> Capacity:
    """The places for uploads that this process receives at once; an upload without one is a QueueFull."""

    def refusal(reason: str) -> QueueFull:
        return QueueFull(reason, code="too_many_uploads", retry_after_s=RETRY_S)

    most = settings.max_uploads
    return Capacity(most, most, settings, unit="uploads", refusal=refusal, wait_s=settings.contended_wait_s)


class _Archive(NamedTuple):
    """An archive that is to become a data set.

    Attributes:
        fields: Form fields that were sent.
        filename: The client's name of it, or of its folder.
        write: Writes it, complete and synced, to a path where nothing lies.
        content: Its hash; None where nobody has computed it yet.
    """

    fields: dict[str, str]
    filename: str | None
    write: Callable[[Path], object]
    content: FileHash | None = None


async def accept_upload(
    request: Request, key: IdempotentRequest | None, query: dict[str, str | None]
) -> tuple[StoredResponse, bool]:
    """Receive an upload and make it a queued data set.

    Args:
        request: Its body is the archive, or a form with it.
        key: The idempotency key of the request, if it has one.
        query: Form fields that were sent as query parameters; None for those that were not.

    Returns:
        The response, and whether it is new: False for the replay of an earlier one.

    Raises:
        ArchiveRejected, QueueFull, InsufficientStorage, TooLarge, InvalidRequest, RequestInFlight,
        IdempotencyMismatch, UnsupportedMediaType, BodyTooSlow, QuotaExceeded.
    """

    async def create() -> StoredResponse:
        return await _receive_dataset(request, key, query)

    async def hash_body() -> str:
        return _hash(await _receive(request, None, query))

    async with request.app.state.upload_capacity.hold(request, while_body_arrives=True):
        await run_in_threadpool(_check_space, request)
        return await _create_once(request, key, create, hash_body)


async def accept_json(request: Request, key: IdempotentRequest | None) -> tuple[StoredResponse, bool]:
    """Make a complete resumable upload, or a folder of this host, a queued data set.

    A resumable upload whose archive is rejected stays, to be tried otherwise.

    Args:
        request: Its body is `FinishedUpload` or `ServerFolder` as JSON.
        key: The idempotency key of the request, if it has one.

    Returns:
        The response, and whether it is new: False for the replay of an earlier one.

    Raises:
        UploadNotFound, UploadLocked, NotReady, ArchiveRejected, InvalidRequest, TooLarge, InsufficientStorage,
        QueueFull, RequestInFlight, IdempotencyMismatch.
    """
    sent = await bodies.strict_json(request)
    kind = ServerFolder if isinstance(sent, dict) and "server_folder" in sent else FinishedUpload
    try:
        body = kind.model_validate(sent)
    except ValidationError as error:
        raise problems.of_body(error, kind) from None
    hashed = request_hash(body.model_dump(mode="json", exclude_none=True))

    async def create() -> StoredResponse:
        if isinstance(body, ServerFolder):
            return await run_in_threadpool(_pack, request, body, key, hashed)
        return await run_in_threadpool(_finish, request, body, key, hashed)

    async def hash_body() -> str:
        return hashed

    place = request.app.state.upload_capacity.hold(request) if isinstance(body, ServerFolder) else None
    async with place or contextlib.nullcontext():
        return await _create_once(request, key, create, hash_body)


async def _create_once(
    request: Request,
    key: IdempotentRequest | None,
    create: Callable[[], Awaitable[StoredResponse]],
    hash_body: Callable[[], Awaitable[str]],
) -> tuple[StoredResponse, bool]:
    """What `create` returns, and True; or the response to an earlier request with this key and hash, and False."""
    if key is None:
        return await create(), True
    engine = request.app.state.engine
    stored = await run_in_threadpool(_reserve, engine, key)
    if stored is not None:
        response, stored_hash = stored
        key.compare(stored_hash, await hash_body())
        return response, False
    try:
        return await create(), True
    except BaseException:
        await asyncio.shield(run_in_threadpool(_abandon, engine, key))
        raise


async def _receive_dataset(
    request: Request, key: IdempotentRequest | None, query: dict[str, str | None]
) -> StoredResponse:
    """Make the archive of the body a data set."""
    files: Storage = request.app.state.storage
    path = files.upload(uuid.uuid4()).with_suffix(".part")
    try:
        received = await _receive(request, path, query)
        archive = _Archive(received.fields, received.filename, path.rename, received.content)
        return await run_in_threadpool(_create_dataset, request, archive, key, _hash(received))
    finally:
        path.unlink(missing_ok=True)


def _finish(request: Request, body: FinishedUpload, key: IdempotentRequest | None, hashed: str) -> StoredResponse:
    """Make a resumable upload a data set. Its archive gets a second name before it goes: no crash loses it."""
    files: Storage = request.app.state.storage
    settings: Settings = request.app.state.settings
    with resumable.lock(files, body.upload_id):
        resumable.drop_unverified(files.resumable(body.upload_id))
        upload = resumable.read(files, body.upload_id, settings.upload_expires_s)
        resumable.check_complete(upload)
        resumable.sync(upload)

        def link(path: Path) -> None:
            path.hardlink_to(upload.data)

        archive = _Archive(body.fields, _filename(upload.metadata), link)
        response = _create_dataset(request, archive, key, hashed)
        local_files.remove(upload.folder)
    return response


def _pack(request: Request, body: ServerFolder, key: IdempotentRequest | None, hashed: str) -> StoredResponse:
    """Make a folder of this host a data set."""
    files: Storage = request.app.state.storage
    settings: Settings = request.app.state.settings

    def pack(path: Path) -> None:
        server_folders.pack(
            body.server_folder,
            settings.server_folders,
            path,
            files,
            most_bytes=settings.archive_total_bytes,
            min_free=settings.min_free_bytes,
        )

    return _create_dataset(request, _Archive(body.fields, body.server_folder, pack), key, hashed)


def _create_dataset(request: Request, archive: _Archive, key: IdempotentRequest | None, hashed: str) -> StoredResponse:
    """Write the archive, check it, publish it and insert its row; a failure leaves nothing."""
    files: Storage = request.app.state.storage
    dataset_id = uuid.uuid4()
    target = files.upload(dataset_id)
    temporary = target.with_suffix(".part")
    is_staged = False
    try:
        archive.write(temporary)
        archive_check.check_upload(temporary, archive.fields, request.app.state.settings)
        content = archive.content or fsync.hash_file(temporary)
        staged = files.stage(temporary, target)
        is_staged = True
        staged.publish()
        return _insert(request, dataset_id, archive, content, key, hashed)
    except BaseException:
        temporary.unlink(missing_ok=True)
        if is_staged:
            files.remove(target)
        raise


async def _receive(request: Request, path: Path | None, query: dict[str, str | None]) -> ReceivedUpload:
    settings: Settings = request.app.state.settings
    writer = UploadWriter(path, request.app.state.storage, settings.min_free_bytes)
    try:
        return await uploads.receive(request, writer, query, settings.upload_bytes)
    finally:
        writer.close()


def _filename(metadata: str) -> str | None:
    """The `filename` in tus' Upload-Metadata, or its `name`; None where it has neither as UTF-8."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    encoded = pairs.get("filename") or pairs.get("name") or ""
    try:
        return base64.b64decode(encoded).decode("utf-8") or None
    except ValueError:
        return None


def _insert(
    request: Request,
    dataset_id: uuid.UUID,
    archive: _Archive,
    content: FileHash,
    key: IdempotentRequest | None,
    hashed: str,
) -> StoredResponse:
    upload: dict[str, Any] = {
        **{field: archive.fields.get(field) for field in archive_check.COLUMN_FIELDS},
        "sha256": content.sha256,
        "size_bytes": content.bytes,
    }
    owner = access.key_id(request.state.principal)
    with db.transaction(request.app.state.engine) as session:
        quotas.check_storage(session, request.app.state.settings, owner, content.bytes)
        name = archive.fields.get("name") or title_of(archive.filename)
        row = service.create(session, dataset_id, name, upload, request.state.request_id, owner)
        body = schemas.dataset_out(row, None).model_dump(mode="json")
        response = StoredResponse(202, {"Location": f"/datasets/{dataset_id}"}, body)
        if key is not None:
            key.finish(session, hashed, response)
    return response


def title_of(filename: str | None) -> str:
    """The name of a data set by default: the client's file name without folders and ending. No path is made from it."""
    plain = "".join(c for c in (filename or "").replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable())
    for ending in (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst"):
        plain = plain.removesuffix(ending)
    return plain[:200] or "data set"


def _hash(received: ReceivedUpload) -> str:
    return request_hash(received.fields, received.content.sha256)


def _check_space(request: Request) -> None:
    """Refuse an upload before its bytes come, where the disk or the caller's quota has no room for it."""
    request.app.state.storage.require(request.app.state.settings.min_free_bytes)
    declared = request.headers.get("content-length", "")
    check_quota(request, int(declared) if declared.isdigit() else 0)


def check_quota(request: Request, size_bytes: int) -> None:
    """Raise QuotaExceeded if the caller may not store so many bytes more; the insertion of the data set decides."""
    owner = access.key_id(request.state.principal)
    if owner is not None:
        with db.transaction(request.app.state.engine) as session:
            quotas.check_storage(session, request.app.state.settings, owner, size_bytes)


def _reserve(engine: Any, key: IdempotentRequest) -> tuple[StoredResponse, str] | None:
    with db.transaction(engine) as session:
        return key.begin(session, None)


def _abandon(engine: Any, key: IdempotentRequest) -> None:
    with db.transaction(engine) as session:
        key.abandon(session)
