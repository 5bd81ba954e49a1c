"""The headers of a tar (v7, ustar, GNU, pax), parsed here from a file or from a stream as it is decompressed.

Only plain files and folders are accepted (Z2). Real bytes are counted, whatever a header or a gzip trailer states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol, TypeVar

from ml.formats.entries import (
    CHUNK_BYTES,
    Entry,
    Limits,
    OverBudget,
    ambiguous,
    bad,
    check_bytes,
    check_count,
    check_names,
    too_large,
)
from ml.formats.entry_names import EntryNames, unsafe_name
from ml.formats.errors import DatasetFormatError, printable

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 18  # a pax header or GNU long name beyond this is no name; extended attributes have 64 KiB
MAX_RECORDS = 1000  # of one pax header
FILE_TYPES, FOLDER, LONG_NAME, LONG_LINK, PAX, GLOBAL_PAX = b"0\0007", b"5", b"L", b"K", b"x", b"g"
CHECKSUM = slice(148, 156)
Value = TypeVar("Value", bytes, int)
_pax_record = re.compile(rb"([0-9]{1,7}) ([^=]+)=").match
_octal = re.compile(rb" *([0-7]*)[ \0]*").fullmatch  # a zero byte ends a number: what follows it is read by some only


class TarStream(Protocol):
    """A tar read from front to back."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end."""
        ...

    def skip(self, count: int) -> bool:
        """Pass over `count` bytes; False where there are fewer."""
        ...


class PlainTar:
    """An uncompressed tar: skipping reads nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = file.seek(0, 2)
        self._at = file.seek(0)

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        self._at += len(data)
        return data

    def skip(self, count: int) -> bool:
        self._at += count
        self._file.seek(self._at)
        return self._at <= self._end


class DecompressedTar:
    """A tar as it is decompressed, within the limits on size and ratio.

    Args:
        plain: The decompressor.
        compressed: The file that it reads; its position is the number of compressed bytes so far.
        limits: `total_bytes`, with the headers of `entries` on top, and `ratio`.
    """

    def __init__(self, plain: BinaryIO, compressed: BinaryIO, limits: Limits) -> None:
        self._plain, self._compressed, self._limits, self._out = plain, compressed, limits, 0

    def read(self, count: int) -> bytes:
        parts = []
        while count and (part := self._plain.read(min(count, CHUNK_BYTES))):
            parts.append(part)
            count -= len(part)
            self._out += len(part)
            if self._limits.budget is not None and self._out > self._limits.budget.inflated_bytes:
                raise OverBudget
            if self._out > self._limits.total_bytes + BLOCK * 4 * self._limits.entries:
                raise too_large(f"the archive holds more than {self._limits.total_bytes} bytes")
            if self._out > self._limits.ratio_from_bytes and self._out > self._limits.ratio * self._compressed.tell():
                raise too_large(f"the archive inflates more than {self._limits.ratio:g} times")
        return b"".join(parts)

    def skip(self, count: int) -> bool:
        while count:
            step = len(self.read(min(count, CHUNK_BYTES)))
            if not step:
                return False
            count -= step
        return True


def looks_like(start: bytes) -> bool:
    """Whether a first block is a tar header (or the end of an empty tar): its checksum says so."""
    return len(start) == BLOCK and (not any(start) or _is_checksum_right(start))


def read(
    stream: TarStream,
    limits: Limits,
    keep: Callable[[str], bool] = lambda _: False,
    may_keep: Callable[[str], bool] = lambda _: False,
) -> tuple[list[Entry], list[str], dict[str, bytes]]:
    """List a tar.

    Args:
        stream: The tar from its first byte.
        limits: What it may hold.
        keep: Whether the content of the file of this name is returned: a compressed tar is read once only.
        may_keep: The same, as far as all together are within `limits.table_bytes`.

    Returns:
        The files in their order, the names of the folders, and the contents to keep by name.

    Raises:
        DatasetFormatError: bad_archive, ambiguous_archive, unsafe_entry_name, unsafe_entry_type, archive_too_large.
        OverBudget: It has too many names, or inflates to too many bytes, for the budget.
    """
    entries, folders, contents = list[Entry](), list[str](), dict[str, bytes]()
    total = kept_bytes = 0
    for path, at, size in _members(stream, limits):
        if path.endswith("/") or not path:
            folders.append(path)
            continue
        total += size
        check_bytes(path, size, total, limits)
        entries.append(Entry(path, at, size, False, size, None))
        if keep(path) or (may_keep(path) and kept_bytes + size <= limits.table_bytes):
            kept_bytes += size
            if kept_bytes > limits.table_bytes:
                raise too_large(f"the tables have more than {limits.table_bytes} bytes", path)
            if limits.budget is not None and kept_bytes > limits.budget.table_bytes:
                raise OverBudget
            contents[path] = stream.read(size)
            is_complete = len(contents[path]) == size and stream.skip(_padded(size) - size)
        else:
            is_complete = stream.skip(_padded(size))
        if not is_complete:
            raise bad(f"the tar ends inside {printable(path)!r}", path)
    return entries, folders, contents


class _Member(NamedTuple):
    path: str  # a folder's ends with a slash, or is empty
    at: int  # first byte of the content in the tar
    size: int


def _members(stream: TarStream, limits: Limits) -> Iterator[_Member]:
    """The files and folders in their order, named and sized as the extended headers before them say.

    Before the next is asked for, the content of a file is to be read or skipped, with its padding.
    """
    names = EntryNames()
    at = headers_read = records = 0
    next_name: bytes | None = None
    next_size: int | None = None
    while any(block := _header(stream, at)):
        at += BLOCK
        headers_read += 1
        check_count(headers_read, limits)
        check_names(headers_read + records + names.folder_count, limits)
        kind, size = block[156:157], _number(block[124:136])
        if kind in (LONG_NAME, LONG_LINK, PAX, GLOBAL_PAX):
            body = _extended(stream, size)
            at += _padded(size)
            if kind == LONG_NAME:
                next_name = _only(next_name, body.rstrip(b"\0"))
            elif kind in (PAX, GLOBAL_PAX):
                pax_name, pax_size, count = _pax(body, everywhere=kind == GLOBAL_PAX)
                next_name, next_size = _only(next_name, pax_name), _only(next_size, pax_size)
                records += count
            continue
        name, size = _name(block) if next_name is None else next_name, size if next_size is None else next_size
        next_name = next_size = None
        path = _add_name(names, name, kind)
        if size and (path.endswith("/") or not path):
            raise ambiguous(f"the folder {printable(path)!r} has contents of its own", path)
        yield _Member(path, at, size)
        at += _padded(size)
    _check_end(stream)
    names.check_folders()


def _header(stream: TarStream, at: int) -> bytes:
    """The header block at byte `at`, or a block of zeros: the end."""
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise bad("the tar has no end: it is truncated")
    if any(block) and not _is_checksum_right(block):
        raise bad(f"the header at byte {at} of the tar is damaged")
    return block


def _add_name(names: EntryNames, raw: bytes, kind: bytes) -> str:
    if kind == FOLDER and not raw.endswith(b"/"):
        raw += b"/"
    path = names.add(raw)
    if kind != FOLDER and kind not in (b"0", b"\0", b"7"):
        detail = f"{printable(path)!r} is a link, a device or a sparse file"
        raise DatasetFormatError("unsafe_entry_type", detail, path)
    if not path and kind != FOLDER:
        raise unsafe_name("", "a file has no name")
    return path


def _is_checksum_right(block: bytes) -> bool:
    octal = _octal(block[CHECKSUM])
    if octal is None or not octal[1]:
        return False
    return int(octal[1], 8) == sum(block) - sum(block[CHECKSUM]) + 8 * 32


def _number(raw: bytes) -> int:
    if raw[0] & 0x80:  # GNU's base-256, for sizes beyond 8 GiB
        value = int.from_bytes(raw, "big") - (0x80 << 8 * (len(raw) - 1))
        if raw[0] != 0x80 or value >= 1 << 63:
            raise bad("a size in the tar is out of range")
        return value
    octal = _octal(raw)
    if octal is None:
        raise bad("a size in the tar is no number")
    return int(octal[1] or b"0", 8)


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        return block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _extended(stream: TarStream, size: int) -> bytes:
    if size > MAX_EXTENDED_BYTES:
        raise unsafe_name("", f"a name in the tar has {size} bytes")
    body = stream.read(_padded(size))
    if len(body) < _padded(size):
        raise bad("the tar ends inside a name")
    return body[:size]


def _only(before: Value | None, value: Value | None) -> Value | None:
    """What the extended headers of a file say together; of two that differ programs take the first or the last."""
    if before is not None and value is not None and before != value:
        raise ambiguous("two extended headers of a file in the tar disagree")
    return before if value is None else value


def _pax(body: bytes, *, everywhere: bool) -> tuple[bytes | None, int | None, int]:
    """Name and size from pax records `<length> <key>=<value>\n`, and how many records there are."""
    name: bytes | None = None
    size: int | None = None
    at = count = 0
    while at < len(body):
        record = _pax_record(body, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(body) or body[end - 1] != 0x0A:
            raise bad("a pax header in the tar is damaged")
        count += 1
        if count > MAX_RECORDS:
            raise too_large(f"a pax header in the tar has more than {MAX_RECORDS} records")
        key, value = record[2], body[record.end() : end - 1]
        if everywhere and key in (b"path", b"size"):
            raise ambiguous(f"a global pax header sets {key.decode()} for every file")
        if key.startswith(b"GNU.sparse"):
            raise DatasetFormatError("unsafe_entry_type", "the tar has a sparse file", printable(name or b""))
        if key == b"path":
            name = value
        elif key == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise bad("a size in the tar is no number")
            size = int(value)
        at = end
    return name, size, count


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _check_end(stream: TarStream) -> None:
    """Only zeros may follow the end: a second archive behind it would be read by some programs only."""
    while block := stream.read(CHUNK_BYTES):
        if any(block):
            raise ambiguous("bytes follow the end of the tar")
