"""Tars: one reading whether plain, gzip or zstd, and Python's tarfile reads the same files in it."""

from __future__ import annotations

import gzip
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Self

from ml.formats import tar_headers
from ml.formats.archive import GZIP_MAGIC, ZIP_MAGICS, ZSTD_MAGIC, Archive, decompress
from ml.formats.errors import DatasetFormatError
from tests.fuzz import archive_rules
from tests.pictures import compress_zstd

BLOCK = tar_headers.BLOCK
OTHER_FORMATS = (*ZIP_MAGICS, GZIP_MAGIC, ZSTD_MAGIC)
ROOM = archive_rules.LIMITS.total_bytes + 4 * BLOCK * archive_rules.LIMITS.entries


class Refused(Exception):
    """A header that tarfile would pass over in silence."""


class Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Refused from error


def check(data: bytes) -> bool:
    with archive_rules.stored(data) as path:
        archive, code = archive_rules.read(path)
        if archive is not None and archive.container == "zip":
            return False
        files = {} if archive is None else archive_rules.check(archive, ROOM if archive.compression else len(data))
        if archive is not None and archive.compression:
            check_decompressed(path, archive, files)
        elif tar_headers.looks_like(data[:BLOCK]) and not data.startswith(OTHER_FORMATS):
            by_gzip = sum(data[:BLOCK]) % 2  # both would take twice as long
            check_compressed(gzip.compress(data, 1, mtime=0) if by_gzip else compress_zstd(data), archive, code)
        if archive is not None and not archive.compression:
            compare(path, archive, files)
    return archive is not None


def check_decompressed(path: Path, archive: Archive, files: dict[str, bytes | None]) -> None:
    """A compressed tar has the files of the tar inside."""
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tar"
        assert decompress(path, plain, archive.limits)
        other, _ = archive_rules.read(plain)
        if other is None:  # the tar inside begins as another format does
            return
        assert other.entries == archive.entries
        assert archive_rules.contents(other) == files
        assert all(files[name] == content for name, content in archive.tables.items())


def check_compressed(compressed: bytes, archive: Archive | None, code: str) -> None:
    """What is read in a plain tar is read in a compressed one, unless that is refused for its ratio or its tables."""
    with archive_rules.stored(compressed) as path:
        other, other_code = archive_rules.read(path)
        if other_code == "archive_too_large":
            return
        assert other_code == code
        if archive is not None and other is not None:
            assert (other.entries, other.folders) == (archive.entries, archive.folders)


def compare(path: Path, archive: Archive, files: dict[str, bytes | None]) -> None:
    """Names in their order, sizes and contents are those of tarfile, where it accepts the tar."""
    try:
        with tarfile.open(path, "r:", tarinfo=Header, encoding="utf-8", errors="surrogateescape") as other:
            members = [(member, other.extractfile(member)) for member in other if not _is_odd(path, member)]
            theirs = [
                (_name(member), member.offset_data, member.size, file.read())
                for member, file in members
                if file is not None and not member.pax_headers.get("path", member.name).endswith("/")
            ]
    except (tarfile.TarError, Refused, ValueError, OverflowError):
        return
    ours = [(entry.path, entry.offset, entry.image_bytes, files[entry.path]) for entry in archive.entries]
    assert theirs == ours


def _is_odd(path: Path, member: tarfile.TarInfo) -> bool:
    """tarfile reads a prefix in headers that are no ustar, where GNU tar and libarchive do not."""
    header = path.read_bytes()[member.offset_data - BLOCK : member.offset_data]
    if header[257:263] != b"ustar\0" and header[345]:
        raise Refused
    return False


def _name(member: tarfile.TarInfo) -> str:
    return re.sub(r"^(\./)+", "", member.name)


def mutate(data: bytes, dice: int) -> bytes:
    """Headers get their checksum, and the tar its end, most of the time."""
    if dice % 8 == 0:
        return data
    out = bytearray(data[: len(data) // BLOCK * BLOCK])
    at = 0
    while at < len(out) and any(out[at : at + BLOCK]):
        out[at + 148 : at + 156] = b" " * 8
        out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + BLOCK])
        try:
            size = tar_headers._number(bytes(out[at + 124 : at + 136]))
        except DatasetFormatError:
            break
        at += BLOCK + tar_headers._padded(size)
    if dice % 8 == 1 or any(out[at : at + BLOCK]):
        return bytes(out)
    return bytes(out[:at] + bytes(2 * BLOCK))
