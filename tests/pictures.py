"""Small real pictures and the archives around them, honest and hostile, for everybody's tests.

zipped(class_folders())                      a data set that works
zipped({**class_folders(), "cat/x.jpg": b""})  one with a bad file
hand_zip([Raw(b"../x", b"...")])             headers written byte by byte, so that each can lie
"""

from __future__ import annotations

import functools
import importlib
import io
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("cat", "dog")
EMPTY_ZSTD_FRAME = bytes.fromhex("28b52ffd2000010000")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def pixels(seed: int, width: int = 8, height: int = 8, hue: int = 0) -> NDArray[np.uint8]:
    """uint8 (height, width, 3): noise around one of six colours, so that a tiny network can tell hues apart."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    colour = 160 * np.array([(hue % 6 + 1) >> bit & 1 for bit in range(3)])
    values: NDArray[np.uint8] = (noise + colour).astype(np.uint8)
    return values


@functools.cache
def encoded(
    seed: int = 0, width: int = 8, height: int = 8, *, hue: int = 0, kind: str = "JPEG", mode: str = "RGB",
    orientation: int | None = None,
) -> bytes:  # fmt: skip
    """A picture in any format and mode that Pillow can write."""
    picture = Image.fromarray(pixels(seed, width, height, hue))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    elif mode != "RGB":
        picture = picture.convert(mode)
    options: dict[str, Any] = {}
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    if kind == "JPEG":
        options["quality"] = 90
    if kind == "WEBP":
        options["lossless"] = True
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def class_folders(
    classes: Sequence[str] = CLASSES, per_class: int = 4, *, splits: Sequence[str] = ("",), side: int = 8, seed: int = 0
) -> dict[str, bytes]:
    """`<split>/<class>/<n>.jpg`, every picture different, every class of its own colour."""
    files = {}
    for split in splits:
        for hue, name in enumerate(classes):
            for number in range(per_class):
                seed += 1
                path = f"{split}/{name}/{number}.jpg".removeprefix("/")
                files[path] = encoded(seed, side, side, hue=hue)
    return files


def table(columns: str, rows: Sequence[str]) -> bytes:
    return "\n".join([columns, *rows, ""]).encode()


def with_table(rows: int = 6, *, folder: str = "images", name: str = "labels.csv") -> dict[str, bytes]:
    """Pictures in one folder and a table `file,label` of cats and dogs in turn."""
    names = [f"{folder}/{number}.jpg" for number in range(rows)]
    files = {path: encoded(number, hue=number % 2) for number, path in enumerate(names)}
    files[name] = table("file,label", [f"{path},{CLASSES[number % 2]}" for number, path in enumerate(names)])
    return files


def zipped(files: Mapping[str, bytes], *, deflated: bool = False, folders: Sequence[str] = ()) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for folder in folders:
            archive.mkdir(folder)
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred(files: Mapping[str, bytes], *, compression: str = "", kind: int = tarfile.PAX_FORMAT) -> bytes:
    """`compression` is "", "gz" or "zst"; `kind` one of tarfile's USTAR_FORMAT, GNU_FORMAT, PAX_FORMAT."""
    file = io.BytesIO()
    mode: Any = f"w:{compression if compression == 'gz' else ''}"
    with tarfile.open(fileobj=file, mode=mode, format=kind) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            archive.addfile(entry, io.BytesIO(data))
    return compress_zstd(file.getvalue()) if compression == "zst" else file.getvalue()


def compress_zstd(data: bytes) -> bytes:
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    compressed: bytes = zstd.compress(data)
    return compressed


def tarred_entry(name: str, kind: bytes, link: str = "") -> bytes:
    """A tar with one special entry: a link, a device, a FIFO."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link
        archive.addfile(entry)
    return file.getvalue()


@dataclass(frozen=True)
class Raw:
    """A zip entry whose headers say what they are told to. None means the truth."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0  # unix mode, in the upper half of the external attributes
    size: int | None = None
    stored: int | None = None
    crc: int | None = None
    extra: bytes = b""
    local: Mapping[str, Any] | None = None  # fields in which the local header differs
    offset: int | None = None  # of the local header, as the directory states it


def hand_zip(entries: Sequence[Raw], *, comment: bytes = b"", before: bytes = b"", count: int | None = None) -> bytes:
    """A zip written byte by byte. `before` shifts everything without telling the directory."""
    body, directory = b"", b""
    for raw in entries:
        data = _deflated(raw.data) if raw.method == 8 else raw.data
        truth: dict[str, Any] = {
            "name": raw.name,
            "flags": raw.flags,
            "method": raw.method,
            "crc": zlib.crc32(raw.data) if raw.crc is None else raw.crc,
            "stored": len(data) if raw.stored is None else raw.stored,
            "size": len(raw.data) if raw.size is None else raw.size,
            "extra": raw.extra,
        }
        offset = len(body) if raw.offset is None else raw.offset
        body += _local(**{**truth, **(raw.local or {})}) + data
        directory += _central(**truth, offset=offset, mode=raw.mode)
    total = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, total, total, len(directory), len(body), len(comment))
    return before + body + directory + end + comment


def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


def _local(*, name: bytes, flags: int, method: int, crc: int, stored: int, size: int, extra: bytes) -> bytes:
    numbers = (20, flags, method, 0, 33, crc, stored, size, len(name), len(extra))
    return struct.pack("<4s5H3L2H", b"PK\3\4", *numbers) + name + extra


def _central(
    *, name: bytes, flags: int, method: int, crc: int, stored: int, size: int, extra: bytes, offset: int, mode: int
) -> bytes:
    numbers = (20, 20, flags, method, 0, 33, crc, stored, size, len(name), len(extra), 0, 0, 0, mode << 16, offset)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", *numbers) + name + extra
