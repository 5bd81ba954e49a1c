"""From an upload to a queued data set: receive the archive, check it, insert a row. A failure leaves nothing (INV10).

The bytes lie under a temporary name until everything else has succeeded; then they get the name that the row refers to.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import uuid
from pathlib import Path
from typing import Any

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

RETRY_S = 10


def upload_capacity(settings: Settings) -> Capacity:
    """The places for uploads that this process receives at once; an upload without one is a QueueFull."""

    def refusal(reason: str) -> QueueFull:
        return QueueFull(reason, code="too_many_uploads", retry_after_s=RETRY_S)

    most = settings.max_uploads
    return Capacity(most, most, settings, unit="uploads", refusal=refusal, wait_s=settings.contended_wait_s)


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
    async with request.app.state.upload_capacity.hold(request, while_body_arrives=True):
        await run_in_threadpool(_check_space, request)
        if key is None:
            return await _create_dataset(request, None, query), True
        stored = await run_in_threadpool(_reserve, request.app.state.engine, key)
        if stored is not None:
            response, stored_hash = stored
            key.compare(stored_hash, _hash(await _receive(request, None, query)))
            return response, False
        try:
            return await _create_dataset(request, key, query), True
        except BaseException:
            await asyncio.shield(run_in_threadpool(_abandon, request.app.state.engine, key))
            raise


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
    place = request.app.state.upload_capacity.hold(request) if isinstance(body, ServerFolder) else None
    async with place or contextlib.nullcontext():
        return await _accept(request, body, key)


async def _accept(
    request: Request, body: FinishedUpload | ServerFolder, key: IdempotentRequest | None
) -> tuple[StoredResponse, bool]:
    """As `accept_json`."""
    engine, hashed = request.app.state.engine, request_hash(body.model_dump(mode="json", exclude_none=True))

    def make() -> StoredResponse:
        if isinstance(body, ServerFolder):
            return _pack(request, body, key, hashed)
        return _finish(request, body, key, hashed)

    if key is None:
        return await run_in_threadpool(make), True
    stored = await run_in_threadpool(_reserve, engine, key)
    if stored is not None:
        key.compare(stored[1], hashed)
        return stored[0], False
    try:
        return await run_in_threadpool(make), True
    except BaseException:
        await asyncio.shield(run_in_threadpool(_abandon, engine, key))
        raise


def _finish(request: Request, body: FinishedUpload, key: IdempotentRequest | None, hashed: str) -> StoredResponse:
    """The archive gets a second name, to which the row refers, before the upload goes: no crash loses it."""
    files: Storage = request.app.state.storage
    settings: Settings = request.app.state.settings
    fields = body.fields
    with resumable.lock(files, body.upload_id):
        resumable.drop_unverified(files.resumable(body.upload_id))
        upload = resumable.read(files, body.upload_id, settings.upload_expires_s)
        resumable.check_complete(upload)
        resumable.sync(upload)
        archive_check.check_upload(upload.data, fields, settings)
        received = ReceivedUpload(
            fields, _filename(upload.metadata), fsync.hash_file(upload.data).sha256, upload.length
        )
        dataset_id = uuid.uuid4()
        target = files.upload(dataset_id)
        temporary = target.with_suffix(".part")
        try:
            temporary.hardlink_to(upload.data)
            files.stage(temporary, target).publish()
            response = _insert(request, dataset_id, received, key, hashed)
        except BaseException:
            temporary.unlink(missing_ok=True)
            files.remove(target)
            raise
        local_files.remove(upload.folder)
    return response


def _pack(request: Request, body: ServerFolder, key: IdempotentRequest | None, hashed: str) -> StoredResponse:
    """Pack the folder; a failure leaves nothing."""
    files: Storage = request.app.state.storage
    settings: Settings = request.app.state.settings
    dataset_id = uuid.uuid4()
    target = files.upload(dataset_id)
    temporary = target.with_suffix(".part")
    try:
        server_folders.pack(
            body.server_folder,
            settings.server_folders,
            temporary,
            files,
            most_bytes=settings.archive_total_bytes,
            min_free=settings.min_free_bytes,
        )
        archive_check.check_upload(temporary, body.fields, settings)
        size_bytes, sha256 = fsync.hash_file(temporary)
        received = ReceivedUpload(body.fields, body.server_folder, sha256, size_bytes)
        files.stage(temporary, target).publish()
        return _insert(request, dataset_id, received, key, hashed)
    except BaseException:
        temporary.unlink(missing_ok=True)
        files.remove(target)
        raise


def _filename(metadata: str) -> str | None:
    """The `filename` in tus' Upload-Metadata, or its `name`; None where it has neither as UTF-8."""
    pairs = dict(pair.strip().partition(" ")[::2] for pair in metadata.split(","))
    encoded = pairs.get("filename") or pairs.get("name") or ""
    try:
        return base64.b64decode(encoded).decode("utf-8") or None
    except ValueError:
        return None


async def _create_dataset(
    request: Request, key: IdempotentRequest | None, query: dict[str, str | None]
) -> StoredResponse:
    files: Storage = request.app.state.storage
    dataset_id = uuid.uuid4()
    target = files.upload(dataset_id)
    temporary = target.with_suffix(".part")
    is_published = is_queued = False
    try:
        received = await _receive(request, temporary, query)
        settings = request.app.state.settings
        await run_in_threadpool(archive_check.check_upload, temporary, received.fields, settings)
        staged = await run_in_threadpool(files.stage, temporary, target)
        is_published = True
        await run_in_threadpool(staged.publish)
        response = await run_in_threadpool(_insert, request, dataset_id, received, key, _hash(received))
        is_queued = True
    finally:
        if not is_queued:
            temporary.unlink(missing_ok=True)
            if is_published:
                await asyncio.shield(run_in_threadpool(files.remove, target))
    return response


async def _receive(request: Request, path: Path | None, query: dict[str, str | None]) -> ReceivedUpload:
    settings: Settings = request.app.state.settings
    writer = UploadWriter(path, request.app.state.storage, settings.min_free_bytes)
    try:
        return await uploads.receive(request, writer, query, settings.upload_bytes)
    finally:
        writer.close()


def _insert(
    request: Request, dataset_id: uuid.UUID, received: ReceivedUpload, key: IdempotentRequest | None, hashed: str
) -> StoredResponse:
    upload: dict[str, Any] = {
        **{field: received.fields.get(field) for field in archive_check.COLUMN_FIELDS},
        "sha256": received.sha256,
        "size_bytes": received.size_bytes,
    }
    owner = access.key_id(request.state.principal)
    with db.transaction(request.app.state.engine) as session:
        quotas.check_storage(session, request.app.state.settings, owner, received.size_bytes)
        name = received.fields.get("name") or title_of(received.filename)
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
    return request_hash(received.fields, received.sha256)


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
