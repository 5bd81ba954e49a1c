"""An archive on its way from the client to a file: streamed, hashed and counted as it comes, never held in memory.

What the archive contains is `archive`'s business; whose it becomes, the service's.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request

from app.errors import Fault, InsufficientStorage, InvalidRequest, TooLarge, UnsupportedMediaType
from app.http import bodies, problems
from app.http.fields import Name
from app.http.multipart import Begin, Data, Parts
from app.storage import CHUNK_BYTES, ENOSPC_RETRY_S, Storage

RAW_TYPES = ("application/zip", "application/x-tar", "application/gzip", "application/zstd")
FIELDS = ("name", "label_column", "clean_column")
FIELD_BYTES = 1024 * 1024
CHECK_SPACE_BYTES = 64 * 1024 * 1024  # how often free space is looked at
PARTS = 16
text = TypeAdapter(Name)


class Received(NamedTuple):
    fields: dict[str, str]  # name, label_column, clean_column, as far as given
    filename: str | None
    sha256: str
    size_bytes: int


class Sink:
    """Where the bytes of the archive go, written by threads a megabyte at a time. Without a path, only hashed."""

    def __init__(self, path: Path | None, storage: Storage, min_free: int) -> None:
        self._file: BinaryIO | None = None
        if path is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(path, flags, 0o640), "wb", buffering=0)
        self._hash = hashlib.sha256()
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._since_check = 0
        self._storage, self._min_free = storage, min_free
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= CHUNK_BYTES:
            await asyncio.to_thread(self._drain)

    async def finish(self) -> str:
        """Everything on disk; the SHA-256."""
        await asyncio.to_thread(self._drain)
        if self._file is not None:
            await asyncio.to_thread(os.fsync, self._file.fileno())
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _drain(self) -> None:
        blocks, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for block in blocks:  # one by one: joined they would be copied once more
            self._hash.update(block)
            self.size_bytes += len(block)
            if self._file is not None:
                self._store(self._file, block)

    def _store(self, file: BinaryIO, block: bytes) -> None:
        self._since_check += len(block)
        if self._since_check >= CHECK_SPACE_BYTES:
            self._since_check = 0
            self._storage.require(self._min_free)
        view = memoryview(block)
        try:
            while view:
                view = view[file.write(view) :]
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            raise InsufficientStorage("The disk is full.", retry_after_s=ENOSPC_RETRY_S) from error


async def receive(request: Request, sink: Sink, query: dict[str, str | None], limit: int) -> Received:
    """The whole body, in either form, into the sink."""
    bodies.allow(request.scope, limit)
    kind = bodies.media_type(request)
    fields = {name: value for name, value in query.items() if value is not None}
    filename = None
    if kind == "multipart/form-data":
        filename = await _multipart(request, sink, fields)
    elif kind in RAW_TYPES:
        async for chunk in request.stream():
            await sink.write(chunk)
    else:
        raise UnsupportedMediaType(
            f"Send multipart/form-data with a file, or the archive itself as {', '.join(RAW_TYPES)}."
        )
    sha256 = await sink.finish()
    return Received(validated(fields), filename, sha256, sink.size_bytes)


async def _multipart(request: Request, sink: Sink, fields: dict[str, str]) -> str | None:
    """Parts `file`, `name`, `label_column`, `clean_column` in any order; fields are added to `fields`."""
    parts = Parts(request.headers["content-type"], most=PARTS)
    seen: set[str] = set()
    name, filename, value = "", None, bytearray()
    async for chunk in request.stream():
        for event in parts.feed(chunk):
            if isinstance(event, Begin):
                name, value = event.name, bytearray()
                _expect(name, seen, is_file=event.filename is not None)
                filename = event.filename if name == "file" else filename
            elif isinstance(event, Data):
                if name == "file":
                    await sink.write(event.data)
                    continue
                value += event.data
                if len(value) > FIELD_BYTES:
                    raise TooLarge(f"The field {name!r} is longer than {FIELD_BYTES} bytes.")
            elif name != "file":
                fields[name] = decoded(name, bytes(value))
    parts.close()
    if "file" not in seen:
        raise wrong("file", "required", "The part `file` with the archive is missing.")
    return filename


def _expect(name: str, seen: set[str], *, is_file: bool) -> None:
    if name not in (*FIELDS, "file"):
        known = (*FIELDS, "file")
        raise wrong(name, "unknown_field", f"There is no such field.{problems.did_you_mean(name, known)}")
    if name in seen:
        raise wrong(name, "duplicate_field", "This part appears twice.")
    if is_file != (name == "file"):
        raise wrong(name, "file", "`file` is a file with a file name; the other parts are plain fields.")
    seen.add(name)


def decoded(name: str, value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise wrong(name, "text", "The field is not UTF-8.") from None


def validated(fields: dict[str, str]) -> dict[str, str]:
    for name, value in fields.items():
        try:
            text.validate_python(value)
        except ValidationError as error:
            raise wrong(name, "text", str(error.errors()[0]["msg"])) from None
    return fields


def wrong(name: str, code: str, detail: str) -> InvalidRequest:
    fault = Fault(problems.pointer(("body", name)), code, detail)
    return InvalidRequest(f"{fault.pointer}: {detail}", errors=[fault])
