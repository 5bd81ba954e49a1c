"""Receives an archive into a file: it is streamed, hashed and counted as it arrives, never held in memory.

What it contains is checked afterwards, by `archive_check`.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

from pydantic import AfterValidator, Field, StringConstraints, TypeAdapter, ValidationError
from starlette.requests import Request

from app.datasets.archive_check import COLUMN_FIELDS
from app.errors import Fault, InsufficientStorage, InvalidRequest, TooLarge, UnsupportedMediaType
from app.http import bodies, problems
from app.http.fields import Id, Name, Strict, plain
from app.http.multipart import MultipartReader, PartBegin, PartData
from app.storage import ENOSPC_RETRY_S, Storage
from ml.formats.fsync import FileHash

RAW_TYPES = ("application/zip", "application/x-tar", "application/gzip", "application/zstd")
FIELDS = ("name", *COLUMN_FIELDS)
FIELD_BYTES = 1024 * 1024
CHUNK_BYTES = 1024 * 1024
CHECK_SPACE_BYTES = 64 * 1024 * 1024  # free space is checked after this many bytes
MAX_PARTS = 16
FIELD_TEXT = TypeAdapter(Name)
COLUMN_NAMES_CHARS = 4000
ColumnList = Annotated[str, StringConstraints(min_length=1, max_length=COLUMN_NAMES_CHARS), AfterValidator(plain)]
COLUMN_NAMES = TypeAdapter(ColumnList)


class JsonUpload(Strict):
    """The fields of an upload whose bytes do not come with the request."""

    name: Name | None = Field(default=None, description="Shown in lists; by default that of the file or folder")
    path_column: Name | None = None
    label_column: Name | None = None
    clean_column: Name | None = None
    annotator_columns: ColumnList | None = None

    @property
    def fields(self) -> dict[str, str]:
        """Those that were sent, as a form has them."""
        return self.model_dump(include=set(FIELDS), exclude_none=True)


class FinishedUpload(JsonUpload):
    """A complete resumable upload to make a data set of."""

    upload_id: Id = Field(description="Id from `POST /uploads`; the upload must be complete")


class ServerFolder(JsonUpload):
    """A folder of the service's host to make a data set of."""

    server_folder: Annotated[str, StringConstraints(min_length=1, max_length=1000), AfterValidator(plain)] = Field(
        description="A name of `DENLL_SERVER_FOLDERS`, or a folder below it: `photos/2024`"
    )


def body_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schemas of the JSON bodies, for the OpenAPI document."""
    return {kind.__name__: kind.model_json_schema() for kind in (FinishedUpload, ServerFolder)}


class ReceivedUpload(NamedTuple):
    """A complete upload: the form fields that were sent, the client's name of the file, its size and its hash."""

    fields: dict[str, str]
    filename: str | None
    content: FileHash


class UploadWriter:
    """Writes the bytes of an archive in threads, a megabyte at a time.

    Args:
        path: The file to write, which must not exist; None to only hash the bytes.
        storage: Where the file lies, for the check of free space.
        min_free: Bytes that must stay free on the disk.
        append: Write at the end of a file that exists.
        algorithm: Of the hash, by its name in `hashlib`.

    Raises:
        InsufficientStorage: From `write` and `finish`.
    """

    def __init__(
        self, path: Path | None, storage: Storage, min_free: int, *, append: bool = False, algorithm: str = "sha256"
    ) -> None:
        self._file: BinaryIO | None = None
        if path is not None:
            creation = os.O_APPEND if append else os.O_CREAT | os.O_EXCL
            flags = os.O_WRONLY | creation | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(path, flags, 0o600), "wb", buffering=0)
        self._hash = hashlib.new(algorithm)
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._since_check = 0
        self._storage, self._min_free = storage, min_free
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Write the next bytes of the archive."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= CHUNK_BYTES:
            await asyncio.to_thread(self._drain)

    async def finish(self) -> str:
        """Flush everything to disk; returns the hash in hexadecimal digits."""
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


async def receive(request: Request, writer: UploadWriter, query: dict[str, str | None], limit: int) -> ReceivedUpload:
    """Read the whole body, a form or the bare archive, into the writer.

    Args:
        request: The upload.
        writer: Writes the bytes of the archive.
        query: Form fields that were sent as query parameters; None for those that were not.
        limit: The most bytes of the body.

    Raises:
        TooLarge, UnsupportedMediaType, InvalidRequest, InsufficientStorage.
    """
    bodies.allow(request.scope, limit)
    kind = bodies.media_type(request)
    fields = {name: value for name, value in query.items() if value is not None}
    filename = None
    if kind == "multipart/form-data":
        filename = await _multipart(request, writer, fields)
    elif kind in RAW_TYPES:
        async for chunk in request.stream():
            await writer.write(chunk)
    else:
        raise UnsupportedMediaType(
            f"Send multipart/form-data with a file, or the archive itself as {', '.join(RAW_TYPES)}."
        )
    sha256 = await writer.finish()
    return ReceivedUpload(check_fields(fields), filename, FileHash(writer.size_bytes, sha256))


async def _multipart(request: Request, writer: UploadWriter, fields: dict[str, str]) -> str | None:
    """Read the parts, in any order: `file` into the writer, the others into `fields`. Returns the name of the file."""
    parts = MultipartReader(request.headers["content-type"], most=MAX_PARTS)
    seen: set[str] = set()
    name, filename, value = "", None, bytearray()
    async for chunk in request.stream():
        for event in parts.feed(chunk):
            if isinstance(event, PartBegin):
                name, value = event.name, bytearray()
                _expect(name, seen, is_file=event.filename is not None)
                filename = event.filename if name == "file" else filename
            elif isinstance(event, PartData):
                if name == "file":
                    await writer.write(event.data)
                    continue
                value += event.data
                if len(value) > FIELD_BYTES:
                    raise TooLarge(f"The field {name!r} is longer than {FIELD_BYTES} bytes.")
            elif name != "file":
                fields[name] = decode_field(name, bytes(value))
    parts.close()
    if "file" not in seen:
        raise invalid_field("file", "required", "The part `file` with the archive is missing.")
    return filename


def _expect(name: str, seen: set[str], *, is_file: bool) -> None:
    if name not in (*FIELDS, "file"):
        known = (*FIELDS, "file")
        raise invalid_field(name, "unknown_field", f"There is no such field.{problems.did_you_mean(name, known)}")
    if name in seen:
        raise invalid_field(name, "duplicate_field", "This part appears twice.")
    if is_file != (name == "file"):
        raise invalid_field(name, "file", "`file` is a file with a file name; the other parts are plain fields.")
    seen.add(name)


def decode_field(name: str, value: bytes) -> str:
    """The text of a form field; InvalidRequest unless it is UTF-8."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise invalid_field(name, "text", "The field is not UTF-8.") from None


def check_fields(fields: dict[str, str]) -> dict[str, str]:
    """The same fields; InvalidRequest for one that is empty, too long, or has control characters."""
    for name, value in fields.items():
        try:
            (COLUMN_NAMES if name == "annotator_columns" else FIELD_TEXT).validate_python(value)
        except ValidationError as error:
            raise invalid_field(name, "text", str(error.errors()[0]["msg"])) from None
    return fields


def invalid_field(name: str, code: str, detail: str) -> InvalidRequest:
    """The problem with one form field."""
    fault = Fault(problems.pointer(("body", name)), code, detail)
    return InvalidRequest(f"{fault.pointer}: {detail}", errors=[fault])
