"""The images of a request: from references, data URIs, base64 or bytes. No URL is fetched, no image is decoded.

An image that cannot be loaded is an error of its own; the other images of the request are still classified.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import uuid
from collections.abc import Sequence
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
)
from app.storage import Storage
from ml.formats.errors import printable
from ml.formats.records import ImageRecord

SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")
REFERENCE_CHARS = 4096
SLICE_CHARS = 4 * 2**18  # characters that are decoded at once: a multiple of 4
SMALL_BYTES = 64 * 1024  # takes as long to hash as to hand to another thread
REMOTE = frozenset({"http", "https", "ftp", "file", "s3", "gs"})


class LoadedImage(NamedTuple):
    """The bytes of one input, or the problem with it."""

    input_id: str
    data: bytes
    error: Problem | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


class Source(NamedTuple):
    """One input of a request.

    `kind` is bytes, base64, dataset (`<id>/<index or path>`) or reference (of GET); `pointer` is its JSON Pointer in
    the request.
    """

    input_id: str
    kind: str
    value: bytes | str
    pointer: str

    @property
    def is_small(self) -> bool:
        """Whether the bytes are in memory and few."""
        return isinstance(self.value, bytes) and len(self.value) <= SMALL_BYTES

    @property
    def from_dataset(self) -> bool:
        """Whether it is an image of a stored data set, which needs a key with `read`."""
        return self.kind == "dataset" or (self.kind == "reference" and str(self.value[:8]).lower() == "dataset:")


def load(source: Source, storage: Storage, most_bytes: int) -> LoadedImage:
    """The image's bytes, or the problem with this one image.

    Args:
        source: The input.
        storage: Where data sets lie.
        most_bytes: Size limit of an encoded image.

    Raises:
        InvalidRequest: The reference cannot be read; this concerns the whole request.
    """
    try:
        data = _read_bytes(source, storage, most_bytes)
        check_format(data, most_bytes)
    except InvalidRequest:
        raise
    except Problem as problem:
        return LoadedImage(source.input_id, b"", problem)
    return LoadedImage(source.input_id, data, None)


def refuse_remote(source: Source) -> None:
    """Raise RemoteImagesDisabled if the source is a URL of another host."""
    scheme, colon, _ = str(source.value[:10]).lower().partition(":")
    if source.kind == "reference" and colon and scheme in REMOTE:
        raise RemoteImagesDisabled("Send the image itself with POST /predict; this service fetches nothing by URL.")


def stored_bytes(sources: Sequence[Source], storage: Storage, most_bytes: int) -> int:
    """How many bytes `load` would read for images of data sets; nothing for one that it would refuse.

    Args:
        sources: Of such images.
        storage: Where data sets lie.
        most_bytes: Size limit of an encoded image.
    """
    total = 0
    for source in sources:
        with contextlib.suppress(Problem):
            reference = str(source.value) if source.kind == "dataset" else str(source.value)[len("dataset:") :]
            _, image = find_dataset_image(reference, storage, source.pointer)
            total += image.image_bytes if image.image_bytes <= most_bytes else 0
    return total


def _read_bytes(source: Source, storage: Storage, most_bytes: int) -> bytes:
    if isinstance(source.value, bytes):
        return source.value
    if source.kind == "base64":
        return decode_base64(source.value)
    if source.kind == "dataset":
        return read_dataset_image(source.value, storage, source.pointer, most_bytes)
    return resolve_reference(source.value, storage, source.pointer, most_bytes)


def resolve_reference(reference: str, storage: Storage, pointer: str, most_bytes: int) -> bytes:
    """The bytes that `dataset:<id>/<index or path>` or `data:image/...;base64,...` refers to.

    Args:
        pointer: Of the reference in the request, for errors.
        most_bytes: Size limit of an image of a data set.

    Raises:
        InvalidRequest: The reference has another form.
        DatasetNotFound, ImageNotFound: There is no such image.
        TooLarge: The image of a data set has more than `most_bytes` bytes.
        UndecodableInput: The base64 is invalid.
    """
    scheme, colon, rest = reference.partition(":")
    scheme = scheme.lower()
    if colon and scheme == "dataset":
        return read_dataset_image(rest, storage, pointer, most_bytes)
    if colon and scheme == "data":
        kind, comma, encoded = rest.partition(",")
        if not comma or not kind.startswith("image/") or not kind.endswith(";base64"):
            raise invalid_reference(pointer, "A data URI must read data:image/<type>;base64,<data>.")
        return decode_base64(encoded)
    raise invalid_reference(pointer, "Write dataset:<id>/<index or path>, or data:image/png;base64,<data>.")


def read_dataset_image(reference: str, storage: Storage, pointer: str, most_bytes: int) -> bytes:
    """The bytes of an image of a ready data set; raises as `resolve_reference` does."""
    dataset_id, image = find_dataset_image(reference, storage, pointer)
    if image.image_bytes > most_bytes:
        raise too_large(most_bytes)
    return contents.original(storage, dataset_id, image)


def find_dataset_image(reference: str, storage: Storage, pointer: str) -> tuple[uuid.UUID, ImageRecord]:
    """Data set and record of the image that `<id>/<index or path>` names; raises as `resolve_reference` does.

    The files of a data set exist only while it is ready, so the database is not read.
    """
    dataset, slash, name = reference.partition("/")
    try:
        dataset_id = uuid.UUID(dataset)
    except ValueError:
        raise invalid_reference(pointer, "The data set's id is not a UUID.") from None
    if not slash or not name or len(name) > REFERENCE_CHARS or "\0" in name:
        raise invalid_reference(
            pointer, "Name an image behind the data set's id: its index, or its path in the archive."
        )
    folder = storage.find_dataset(dataset_id)
    if folder is None:
        raise DatasetNotFound("There is no ready data set with this id.")
    is_number = name.isascii() and name.isdigit() and len(name) <= 15
    return dataset_id, contents.find_image(folder, int(name) if is_number else name)


def decode_base64(encoded: str) -> bytes:
    """The bytes of an image; UndecodableInput when it is not base64."""
    invalid = UndecodableInput("The image is not valid base64.", code="invalid_base64")
    if encoded.find("=", 0, -2) >= 0:  # padded before the end
        raise invalid
    try:  # in slices, between which other threads run
        starts = range(0, len(encoded), SLICE_CHARS)
        return b"".join(base64.b64decode(encoded[at : at + SLICE_CHARS], validate=True) for at in starts)
    except (binascii.Error, ValueError):
        raise invalid from None


def check_format(data: bytes, most_bytes: int) -> None:
    """Check size and signature; the inference process decodes.

    Raises:
        UndecodableInput: It is empty.
        TooLarge: It has more than `most_bytes` bytes.
        UnsupportedMediaType: It has the signature of no supported format.
    """
    if not data:
        raise UndecodableInput("The image is empty.", code="empty_image")
    if len(data) > most_bytes:
        raise too_large(most_bytes)
    if not data.startswith(SIGNATURES) and not (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
        raise UnsupportedMediaType("The bytes are no JPEG, PNG, WebP, BMP or GIF.", code="unsupported_image_format")


def too_large(most_bytes: int) -> TooLarge:
    """The problem with an image of more than `most_bytes` bytes."""
    return TooLarge(f"An image may have at most {most_bytes} bytes.")


def invalid_reference(pointer: str, detail: str) -> InvalidRequest:
    """The problem with a reference to an image."""
    return InvalidRequest(f"{printable(pointer)}: {detail}", errors=[Fault(pointer, "image", detail)])
