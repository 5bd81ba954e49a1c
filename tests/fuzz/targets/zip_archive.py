"""Zips: what is accepted is sound, and Python's zipfile reads the same files in it."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from pathlib import Path

from ml.formats.archive import Archive
from tests.fuzz import archive_rules

# How zipfile refuses a zip or an entry; it may be stricter than we are.
REFUSALS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, UnicodeError, EOFError, zlib.error, struct.error)


def check(data: bytes) -> bool:
    with archive_rules.stored(data) as path:
        archive, _ = archive_rules.read(path)
        if archive is None:
            return False
        files = archive_rules.check(
            archive, len(data) if archive.compression == "" else archive_rules.LIMITS.total_bytes * 2
        )
        if archive.container != "zip":
            return False
        compare(path, archive, files)
    return True


def compare(path: Path, archive: Archive, files: dict[str, bytes | None]) -> None:
    """Names in their order, sizes and contents are those of zipfile, where it accepts the zip."""
    try:
        other = zipfile.ZipFile(path)
    except REFUSALS:
        return
    with other:
        infos = [info for info in other.infolist() if _name(info) and not _name(info).endswith("/")]
        assert [_name(info) for info in infos] == [entry.path for entry in archive.entries]
        for info, entry in zip(infos, archive.entries, strict=True):
            assert (info.file_size, info.compress_size, info.CRC) == (entry.image_bytes, entry.stored_bytes, entry.crc)
            try:
                content = other.read(info)
            except REFUSALS:
                continue
            assert files[entry.path] in (content, None)


def _name(info: zipfile.ZipInfo) -> str:
    """The name as we read it: UTF-8 whatever the flag says, without `./` in front."""
    encoding = "utf-8" if info.flag_bits & 0x800 else "cp437"
    name = re.sub(r"^(\./)+", "", info.orig_filename.encode(encoding).decode())
    return "" if name == "." else name


def mutate(data: bytes, dice: int) -> bytes:
    """The end records point at the directory again, and it repeats the local headers, most of the time."""
    start, end = data.find(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    if start < 0 or end < start or len(data) < end + 22 or dice % 4 == 0:
        return data
    out = bytearray(data)
    directory_end, count = end, data.count(b"PK\x01\x02", start, end)
    if start < (end64 := data.find(b"PK\x06\x06", start)) <= end - 76:
        directory_end = end64
        out[end64 + 4 : end64 + 12] = struct.pack("<Q", end - 20 - end64 - 12)
        out[end64 + 24 : end64 + 56] = struct.pack("<4Q", count, count, directory_end - start, start)
        out[end - 20 : end - 4] = struct.pack("<4sLQ", b"PK\x06\x07", 0, end64)
    out[end + 8 : end + 20] = struct.pack("<2H2L", count, count, directory_end - start, start)
    out[end + 20 : end + 22] = struct.pack("<H", min(len(data) - end - 22, 0xFFFF))
    at, header = start, data.find(b"PK\x03\x04")
    while 0 <= at < directory_end and 0 <= header < start and dice % 4 != 1:
        out[at + 42 : at + 46] = struct.pack("<L", header)
        name_bytes = struct.unpack_from("<H", out, header + 26)[0]
        out[at + 6 : at + 30] = out[header + 4 : header + 28]
        out[at + 46 : at + 46 + name_bytes] = out[header + 30 : header + 30 + name_bytes]
        at, header = data.find(b"PK\x01\x02", at + 4), data.find(b"PK\x03\x04", header + 4)
    return bytes(out[: len(data)])
