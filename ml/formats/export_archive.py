"""Writes an export as a stream: a zip without compression, or a tar. Images are compressed already.

The files are gone through several times and never held: first for the size of the archive, then for its bytes, and
for the directory at the end of a zip. No time, no owner and no host is written, so the same files make the same bytes.
"""

from __future__ import annotations

import array
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from ml.formats.records import ImageRecord

IN_ZIP64, COUNT_IN_ZIP64 = 0xFFFFFFFF, 0xFFFF  # this value means: see the zip64 record
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
OFFSET64 = struct.Struct("<2HQ")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")
END = struct.Struct("<4s4H2IH")
UTF8_NAMES = 1 << 11
PLAIN_VERSION, ZIP64_VERSION, MADE_BY_UNIX = 20, 45, 3 << 8
EPOCH_DATE = 1 << 5 | 1  # 1980-01-01, the first day that a zip can state
REGULAR_FILE = 0o100644
TAR_BLOCK = 512
TAR_NAME_BYTES = 100


class ExportFile(NamedTuple):
    """A file of an export.

    Args:
        name: Its path in the archive.
        content: Its bytes; a function that makes them anew, always the same; or the image whose original bytes it has.
    """

    name: str
    content: bytes | Callable[[], Iterable[bytes]] | ImageRecord


Files = Callable[[], Iterator[ExportFile]]
ReadImage = Callable[[ImageRecord], bytes]


class ArchiveWriter(Protocol):
    """An archive that is written as it is read."""

    def size(self) -> int: ...
    def chunks(self, read: ReadImage) -> Iterator[bytes]: ...


class _FileData:
    """The sizes, the CRCs and the bytes of the files; what is made anew is measured once."""

    def __init__(self) -> None:
        self._measured: dict[str, tuple[int, int]] = {}

    def size(self, file: ExportFile) -> int:
        if isinstance(file.content, ImageRecord):
            return file.content.image_bytes
        return len(file.content) if isinstance(file.content, bytes) else self._measure(file.name, file.content)[0]

    def open(self, file: ExportFile, read: ReadImage) -> tuple[int, int, Iterable[bytes]]:
        """Size, CRC-32 and bytes."""
        content = read(file.content) if isinstance(file.content, ImageRecord) else file.content
        if isinstance(content, bytes):
            return len(content), zlib.crc32(content), (content,)
        return *self._measure(file.name, content), content()

    def _measure(self, name: str, content: Callable[[], Iterable[bytes]]) -> tuple[int, int]:
        if name not in self._measured:
            size = crc = 0
            for chunk in content():
                size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            self._measured[name] = size, crc
        return self._measured[name]


class ZipWriter:
    """A zip with stored files, with zip64 records where it has more than 4 GiB or 65,534 files.

    Sizes and CRCs stand before the bytes, so a reader needs no end of the archive to begin.

    Args:
        files: Starts a reading of the files.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._data = _FileData()

    def size(self) -> int:
        """Bytes of the archive."""
        offset = directory = count = 0
        for file in self._files():
            size = self._data.size(file)
            directory += len(_central_header(file.name, size, 0, offset))
            offset += len(_local_header(file.name, size, 0)) + size
            count += 1
        return offset + directory + len(_zip_end(count, offset, directory))

    def chunks(self, read: ReadImage) -> Iterator[bytes]:
        """The bytes of the archive. `read` has the original bytes of an image; what it raises ends the stream."""
        # The files, each behind its header.
        crcs = array.array("I")
        for file in self._files():
            size, crc, data = self._data.open(file, read)
            crcs.append(crc)
            yield _local_header(file.name, size, crc)
            yield from data

        # The directory: the same headers again, with the place of each file.
        offset = directory = 0
        for file, crc in zip(self._files(), crcs, strict=True):
            size = self._data.size(file)
            header = _central_header(file.name, size, crc, offset)
            directory += len(header)
            offset += len(_local_header(file.name, size, crc)) + size
            yield header
        yield _zip_end(len(crcs), offset, directory)


class TarWriter:
    """A tar with plain headers (POSIX ustar). For the arguments see `ZipWriter`; names are short ASCII."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._data = _FileData()

    def size(self) -> int:
        """Bytes of the archive."""
        return sum(TAR_BLOCK + _padded(self._data.size(file)) for file in self._files()) + 2 * TAR_BLOCK

    def chunks(self, read: ReadImage) -> Iterator[bytes]:
        """The bytes of the archive; see `ZipWriter.chunks`."""
        for file in self._files():
            size, _, data = self._data.open(file, read)
            yield _tar_header(file.name, size)
            yield from data
            yield bytes(_padded(size) - size)
        yield bytes(2 * TAR_BLOCK)


WRITERS: dict[str, Callable[[Files], ArchiveWriter]] = {"zip": ZipWriter, "tar": TarWriter}


def _local_header(name: str, size: int, crc: int) -> bytes:
    raw = _zip_name(name, size)
    fields = (PLAIN_VERSION, UTF8_NAMES, 0, 0, EPOCH_DATE, crc, size, size, len(raw), 0)
    return LOCAL.pack(b"PK\x03\x04", *fields) + raw


def _central_header(name: str, size: int, crc: int, offset: int) -> bytes:
    raw = _zip_name(name, size)
    is_far = offset >= IN_ZIP64
    extra = OFFSET64.pack(1, 8, offset) if is_far else b""
    version = ZIP64_VERSION if is_far else PLAIN_VERSION
    fields = (MADE_BY_UNIX | version, version, UTF8_NAMES, 0, 0, EPOCH_DATE, crc, size, size, len(raw), len(extra))
    places = (0, 0, 0, REGULAR_FILE << 16, min(offset, IN_ZIP64))
    return CENTRAL.pack(b"PK\x01\x02", *fields, *places) + raw + extra


def _zip_name(name: str, size: int) -> bytes:
    if size >= IN_ZIP64:
        raise ValueError(f"{name} has 4 GiB or more")
    return name.encode()


def _zip_end(count: int, offset: int, directory: int) -> bytes:
    """The end of a zip with `count` files, whose directory of `directory` bytes is at `offset`."""
    far = b""
    if count >= COUNT_IN_ZIP64 or max(offset, directory) >= IN_ZIP64:
        version = MADE_BY_UNIX | ZIP64_VERSION, ZIP64_VERSION
        far = END64.pack(b"PK\x06\x06", END64.size - 12, *version, 0, 0, count, count, directory, offset)
        far += LOCATOR64.pack(b"PK\x06\x07", 0, offset + directory, 1)
    counts = (min(count, COUNT_IN_ZIP64),) * 2
    return far + END.pack(b"PK\x05\x06", 0, 0, *counts, min(directory, IN_ZIP64), min(offset, IN_ZIP64), 0)


def _tar_header(name: str, size: int) -> bytes:
    raw = name.encode("ascii")
    if len(raw) > TAR_NAME_BYTES:
        raise ValueError(f"{name} is too long for a tar")
    start = b"%-100s%07o\0%07o\0%07o\0%011o\0%011o\0" % (raw, 0o644, 0, 0, size, 0)
    start = start.replace(b" ", b"\0")  # `%-100s` pads with blanks, and the names have none
    end = b"0" + bytes(100) + b"ustar\x0000"
    checksum = sum(start) + sum(end) + 8 * ord(" ")
    return (start + b"%06o\0 " % checksum + end).ljust(TAR_BLOCK, b"\0")


def _padded(size: int) -> int:
    return -(-size // TAR_BLOCK) * TAR_BLOCK
