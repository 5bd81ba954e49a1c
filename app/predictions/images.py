"""The pictures of a request: from references, data URIs, base64 or bytes. Nothing is fetched, nothing is decoded.

A picture that cannot be had is an error of its own; its neighbours are unharmed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import uuid
from typing import NamedTuple

from app.datasets import contents
from app.errors import (
    DatasetNotFound,
    Fault,
    InvalidRequest,
    Problem,
    RemoteImagesDisabled,
    TooLarge,
    UndecodableInput,
    UnsupportedMediaType,
    shown,
)
from app.storage import Storage

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
REFERENCE_CHARS = 4096
LITTLE_BYTES = 64 * 1024  # hashed in the time that handing it to another thread takes
REMOTE = frozenset({"http", "https", "ftp", "file", "s3", "gs"})


class Loaded(NamedTuple):
    """One input: its bytes, or why there are none."""

    input_id: str
    data: bytes
    error: Problem | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Source(NamedTuple):
    """An input as it was given: `kind` is bytes, base64, dataset or reference; `pointer` says where in the request."""

    input_id: str
    kind: str
    value: bytes | str
    pointer: str

    @property
    def at_hand(self) -> bool:
        """Whether there is nothing to open and little to read."""
        return isinstance(self.value, bytes) and len(self.value) <= LITTLE_BYTES

    @property
    def of_dataset(self) -> bool:
        """Whether it is a picture that the service keeps, for those who may read data sets."""
        return self.kind == "dataset" or (self.kind == "reference" and str(self.value[:8]).lower() == "dataset:")


def load(source: Source, storage: Storage, most_bytes: int) -> Loaded:
    """The picture's bytes. InvalidRequest concerns the whole request and is raised."""
    try:
        data = _bytes_of(source, storage)
        check(data, most_bytes)
    except InvalidRequest:
        raise
    except Problem as problem:
        return Loaded(source.input_id, b"", problem)
    return Loaded(source.input_id, data, None)


def refuse_remote(source: Source) -> None:
    """A URL is refused before anything else is looked at; RemoteImagesDisabled."""
    scheme, colon, _ = str(source.value[:10]).lower().partition(":")
    if source.kind == "reference" and colon and scheme in REMOTE:
        raise RemoteImagesDisabled("Send the image itself with POST /predict; this service fetches nothing by URL.")


def _bytes_of(source: Source, storage: Storage) -> bytes:
    if isinstance(source.value, bytes):
        return source.value
    if source.kind == "base64":
        return decoded(source.value)
    if source.kind == "dataset":
        return stored(source.value, storage, source.pointer)
    return referenced(source.value, storage, source.pointer)


def referenced(reference: str, storage: Storage, pointer: str) -> bytes:
    """`dataset:<id>/<index or path>` or `data:image/...;base64,...`."""
    scheme, colon, rest = reference.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "dataset":
        return stored(rest, storage, pointer)
    if colon and scheme == "data":
        kind, comma, encoded = rest.partition(",")
        if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
            raise wrong(pointer, "A data URI must read data:image/<type>;base64,<data>.")
        return decoded(encoded)
    raise wrong(pointer, "Write dataset:<id>/<index or path>, or data:image/png;base64,<data>.")


def stored(reference: str, storage: Storage, pointer: str) -> bytes:
    """An image of a data set. Its folder exists exactly when it is ready, so no database is asked."""
    dataset, slash, name = reference.partition("/")
    try:
        folder = storage.dataset(uuid.UUID(dataset))
    except ValueError:
        raise wrong(pointer, "The data set's id is not a UUID.") from None
    if not slash or not name or len(name) > REFERENCE_CHARS or "\0" in name:
        raise wrong(pointer, "Name an image behind the data set's id: its index, or its path in the archive.")
    if not (folder / "index.sqlite").is_file():
        raise DatasetNotFound("There is no ready data set with this id.")
    row = contents.image(folder, int(name) if name.isascii() and name.isdigit() and len(name) <= 15 else name)
    return contents.original(folder, row)


def decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise UndecodableInput("The image is not valid base64.", code="invalid_base64") from None


def check(data: bytes, most_bytes: int) -> None:
    """Size and signature; whether it decodes, the inference process finds out."""
    if not data:
        raise UndecodableInput("The image is empty.", code="empty_image")
    if len(data) > most_bytes:
        raise TooLarge(f"An image may have at most {most_bytes} bytes.")
    if not data.startswith(SIGNATURES) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise UnsupportedMediaType("The bytes are no JPEG, PNG, WebP, BMP or GIF.", code="unsupported_image_format")


def wrong(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(f"{shown(pointer)}: {detail}", errors=[Fault(pointer, "image", detail)])
