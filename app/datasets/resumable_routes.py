"""/uploads: the resumable upload of archives by tus 1.0.0, which `POST /datasets` with the `upload_id` finishes.

Of the protocol's extensions: creation, creation-with-upload, checksum, expiration, termination.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import email.utils
import re
import uuid
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Header
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from app import local_files
from app.datasets import resumable, upload_service
from app.datasets.resumable import ResumableUpload
from app.datasets.uploads import UploadWriter
from app.errors import (
    ChecksumMismatch,
    Fault,
    InsufficientStorage,
    InvalidRequest,
    OffsetConflict,
    Problem,
    QueueFull,
    TooLarge,
    TusVersionUnsupported,
    UnsupportedMediaType,
    UploadLocked,
    UploadNotFound,
)
from app.http import bodies
from app.http.access import OPEN, READ, TRAIN
from app.http.deps import Config, Files
from app.http.openapi import BINARY, problems
from app.http.problems import from_validation
from app.http.routing import Route, Router
from app.settings import Settings
from app.storage import Storage

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = ("sha256", "sha1")
CHUNK = "application/offset+octet-stream"
NUMBER = re.compile(r"[0-9]{1,18}")
IS_NUMBER = {"pattern": f"^{NUMBER.pattern}$"}
ChecksumHeader = Annotated[
    str | None,
    Header(
        description="Of the body: sha256 or sha1, and base64",
        json_schema_extra={"pattern": f"^({'|'.join(ALGORITHMS)}) ([A-Za-z0-9+/]{{4}})+$"},
    ),
]
METADATA = re.compile(r"[!-+\--~]+( [A-Za-z0-9+/]*={0,2})?(, *[!-+\--~]+( [A-Za-z0-9+/]*={0,2})?)*")
METADATA_BYTES = 4096
CHUNK_BODY = {
    "requestBody": {
        "required": False,
        "content": {CHUNK: BINARY},
    }
}


async def _check_version(
    request: Request,
    tus_resumable: Annotated[
        str | None, Header(description="Required by all methods but GET", json_schema_extra={"const": VERSION})
    ] = None,
) -> None:
    """Refuse other versions of tus."""
    method = request.scope.get("original_method", request.method)
    if method != "GET" and tus_resumable != VERSION:
        detail = f"Send the header Tus-Resumable: {VERSION}."
        raise TusVersionUnsupported(detail, headers={"Tus-Version": VERSION})


TUS_VERSION = Depends(_check_version)


class TusRoute(Route):
    """A route whose responses, problems included, have the header `Tus-Resumable`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of the route."""
        handle = super().get_route_handler()

        async def add_version(request: Request) -> Response:
            try:
                response = await handle(request)
            except (Problem, RequestValidationError) as error:
                problem = error if isinstance(error, Problem) else from_validation(error.errors())
                problem.headers.setdefault("Tus-Resumable", VERSION)
                raise problem from None
            response.headers["Tus-Resumable"] = VERSION
            return response

        return add_version


class TusRouter(Router):
    """A router whose routes are `TusRoute`s."""

    def __init__(self, **named: Any) -> None:
        """Take the arguments of `Router`."""
        super().__init__(**named)
        self.route_class = TusRoute


router = TusRouter(tags=["datasets"])


class UploadOut(BaseModel):
    """An upload that is not a data set yet."""

    id: uuid.UUID
    length: int
    offset: int
    expires_at: datetime


class Checksum(NamedTuple):
    """What an Upload-Checksum header says: the algorithm and the digest in hexadecimal."""

    algorithm: str
    digest: str


@router.options("/uploads", status_code=204, dependencies=[OPEN])
async def options(config: Config) -> Response:
    """The version and extensions of tus that this server supports."""
    headers = {
        "Tus-Version": VERSION,
        "Tus-Max-Size": str(config.upload_bytes),
        "Tus-Extension": EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return Response(status_code=204, headers=headers)


@router.post(
    "/uploads",
    status_code=201,
    response_class=Response,
    dependencies=[TRAIN, TUS_VERSION],
    openapi_extra=CHUNK_BODY,
    responses=problems(
        TooLarge, QueueFull, InsufficientStorage, TusVersionUnsupported, ChecksumMismatch, UploadLocked, UploadNotFound
    ),
)
async def create(
    request: Request,
    config: Config,
    files: Files,
    upload_length: Annotated[str, Header(description="Bytes of the archive", json_schema_extra=IS_NUMBER)],
    upload_metadata: Annotated[str, Header(description="Pairs as in tus; `filename` names the data set")] = "",
    upload_checksum: ChecksumHeader = None,
) -> Response:
    """Begin a resumable upload of an archive (tus 1.0.0); the body may be its first bytes.

    `Location` is where `PATCH` sends the rest and `HEAD` asks for `Upload-Offset`. When it is complete,
    `POST /datasets` with `{"upload_id": "...", "name": "..."}` makes the data set.
    """
    length = _number(upload_length, "Upload-Length")
    if length > config.upload_bytes:
        raise TooLarge(f"An archive has at most {config.upload_bytes} bytes.")
    if len(upload_metadata) > METADATA_BYTES or (upload_metadata and not METADATA.fullmatch(upload_metadata)):
        raise _invalid("Upload-Metadata", "Pairs of a key and a base64 value, separated by commas.")
    checksum = _checksum(upload_checksum)
    has_body = bodies.media_type(request) == CHUNK
    await run_in_threadpool(files.require, config.min_free_bytes + length)
    await run_in_threadpool(upload_service.check_quota, request, length)
    upload = await run_in_threadpool(_create, files, config, length, upload_metadata)
    headers = {"Location": f"/uploads/{upload.id}", "Upload-Offset": "0"} | _expiry(upload)
    if has_body:
        headers |= _state(await _append(request, config, files, upload.id, 0, checksum))
    return Response(status_code=201, headers=headers)


@router.get(
    "/uploads/{upload_id}",
    response_model=UploadOut,
    dependencies=[READ, TUS_VERSION],
    responses=problems(UploadNotFound, TusVersionUnsupported),
)
async def get(config: Config, files: Files, upload_id: uuid.UUID) -> Response:
    """How far an upload is, also as the headers `Upload-Offset`, `Upload-Length` and `Upload-Expires` (HEAD)."""
    upload = await run_in_threadpool(_read_synced, files, upload_id, config.upload_expires_s)
    headers = _state(upload) | {"Upload-Length": str(upload.length), "Cache-Control": "no-store"}
    if upload.metadata:
        headers["Upload-Metadata"] = upload.metadata
    expires_at = datetime.fromtimestamp(upload.expires_at, UTC)
    body = UploadOut(id=upload.id, length=upload.length, offset=upload.offset, expires_at=expires_at)
    return JSONResponse(body.model_dump(mode="json"), headers=headers)


@router.patch(
    "/uploads/{upload_id}",
    status_code=204,
    dependencies=[TRAIN, TUS_VERSION],
    openapi_extra=CHUNK_BODY,
    responses=problems(
        UploadNotFound, OffsetConflict, TusVersionUnsupported, UploadLocked, QueueFull, InsufficientStorage,
        ChecksumMismatch, TooLarge, UnsupportedMediaType,
    ),
)  # fmt: skip
async def append(
    request: Request,
    config: Config,
    files: Files,
    upload_id: uuid.UUID,
    upload_offset: Annotated[
        str, Header(description="Where the body begins: `Upload-Offset` of HEAD", json_schema_extra=IS_NUMBER)
    ],
    upload_checksum: ChecksumHeader = None,
) -> Response:
    """Append the body to an upload, at `Upload-Offset`. Bytes that arrived before a connection broke count."""
    if bodies.media_type(request) != CHUNK:
        raise UnsupportedMediaType(f"Send the bytes as {CHUNK}.")
    offset, checksum = _number(upload_offset, "Upload-Offset"), _checksum(upload_checksum)
    return Response(status_code=204, headers=_state(await _append(request, config, files, upload_id, offset, checksum)))


@router.delete(
    "/uploads/{upload_id}",
    status_code=204,
    dependencies=[TRAIN, TUS_VERSION],
    responses=problems(UploadNotFound, TusVersionUnsupported, UploadLocked),
)
def delete(config: Config, files: Files, upload_id: uuid.UUID) -> None:
    """Delete an unfinished upload."""
    resumable.read(files, upload_id, config.upload_expires_s)
    with resumable.lock(files, upload_id):
        local_files.remove(files.resumable(upload_id))


async def _append(
    request: Request,
    config: Settings,
    files: Storage,
    upload_id: uuid.UUID,
    offset: int,
    checksum: Checksum | None,
) -> ResumableUpload:
    """Write the body at the offset; returns the upload as it is then, on the disk.

    Raises:
        OffsetConflict: The upload is at another offset.
        ChecksumMismatch: The upload is as it was before.
        UploadLocked, UploadNotFound, QueueFull, TooLarge, InsufficientStorage, BodyTooSlow.
    """
    with resumable.lock(files, upload_id):
        upload = await run_in_threadpool(_prepare, files, upload_id, config, offset)
        bodies.allow(request.scope, upload.length - offset)
        if checksum is not None:
            await run_in_threadpool(resumable.mark_unverified, upload.folder, offset)
        writer = UploadWriter(
            upload.data,
            files,
            config.min_free_bytes,
            append=True,
            algorithm="sha256" if checksum is None else checksum.algorithm,
        )
        try:
            async with request.app.state.upload_capacity.hold(request, while_body_arrives=True):
                digest = await _receive(request, writer)
            if checksum is not None:
                if digest != checksum.digest:
                    raise ChecksumMismatch(f"The {checksum.algorithm} of these {writer.size_bytes} bytes is another.")
                await run_in_threadpool(resumable.mark_verified, upload.folder)
        finally:
            writer.close()
            await asyncio.shield(run_in_threadpool(resumable.drop_unverified, upload.folder))
        return await run_in_threadpool(resumable.read, files, upload_id, config.upload_expires_s)


async def _receive(request: Request, writer: UploadWriter) -> str:
    """Write the body, and sync what has arrived of it also where it ends early; returns the digest of what it was."""
    try:
        async for chunk in request.stream():
            await writer.write(chunk)
    except (ClientDisconnect, Problem):
        await writer.finish()
        raise
    return await writer.finish()


def _create(files: Storage, config: Settings, length: int, metadata: str) -> ResumableUpload:
    return resumable.create(files, length, metadata, ttl_s=config.upload_expires_s, most=config.max_unfinished_uploads)


def _read_synced(files: Storage, upload_id: uuid.UUID, ttl_s: float) -> ResumableUpload:
    upload = resumable.read(files, upload_id, ttl_s)
    resumable.sync(upload)
    return upload


def _prepare(files: Storage, upload_id: uuid.UUID, config: Settings, offset: int) -> ResumableUpload:
    """Under the lock: the upload, which is at this offset; OffsetConflict otherwise."""
    files.require(config.min_free_bytes)
    resumable.drop_unverified(files.resumable(upload_id))
    upload = resumable.read(files, upload_id, config.upload_expires_s)
    if upload.offset != offset:
        detail = f"The upload is at offset {upload.offset}."
        raise OffsetConflict(detail, headers={"Upload-Offset": str(upload.offset)})
    return upload


def _state(upload: ResumableUpload) -> dict[str, str]:
    return {"Upload-Offset": str(upload.offset)} | _expiry(upload)


def _expiry(upload: ResumableUpload) -> dict[str, str]:
    return {"Upload-Expires": email.utils.formatdate(upload.expires_at, usegmt=True)}


def _number(value: str, header: str) -> int:
    if not NUMBER.fullmatch(value):
        raise _invalid(header, "A number of bytes is needed.")
    return int(value)


def _checksum(header: str | None) -> Checksum | None:
    if header is None:
        return None
    algorithm, _, encoded = header.partition(" ")
    if algorithm not in ALGORITHMS:
        raise _invalid("Upload-Checksum", f"The algorithm is one of {', '.join(ALGORITHMS)}.", status=400)
    try:
        return Checksum(algorithm, base64.b64decode(encoded, validate=True).hex())
    except (binascii.Error, ValueError):
        raise _invalid("Upload-Checksum", "The digest is not base64.", status=400) from None


def _invalid(header: str, detail: str, status: int | None = None) -> InvalidRequest:
    return InvalidRequest(f"{header}: {detail}", status=status, errors=[Fault(f"/header/{header}", "header", detail)])
