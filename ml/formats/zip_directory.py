"""The central directory of a zip, parsed here and compared with every local header.

Programs differ in which of the two they believe where they disagree, so such archives are refused (Z4). A stated size
is trusted only because no reader of this package ever inflates more than it.
"""

from __future__ import annotations

import mmap
import operator
import stat
import struct
import zlib

from ml.formats.entries import Entry, Limits, ambiguous, bad, check_bytes, check_count, check_names, too_large
from ml.formats.entry_names import EntryNames
from ml.formats.errors import DatasetFormatError, printable

END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
# Of the directory's fields only those in use: magic, flags, method, CRC, stored, size, three lengths, disk, attributes,
# place of the local header. Bytes 6 to 30 are, field by field, bytes 4 to 28 of the local header.
CENTRAL = struct.Struct("<4s4x2H4x3L4H2x2L")
LOCAL = struct.Struct("<4s5H3L2H")
MAX_COMMENT = 0xFFFF
IN_ZIP64 = 0xFFFFFFFF
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x2041  # bits 0 (encrypted), 6 (strong), 13 (masked headers)
DESCRIPTOR = 0x08  # sizes and CRC follow the data, the local header may say 0
UTF8 = 0x800
COMPARED = ENCRYPTED | DESCRIPTOR | UTF8
PROBE_BYTES = 1 << 14  # how much of an entry is inflated to detect a wrong size early
REGULAR = (0, stat.S_IFREG >> 12, stat.S_IFDIR >> 12)
METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd", 99: "AES"}


def read(view: mmap.mmap, limits: Limits) -> tuple[list[Entry], list[str]]:
    """List a zip.

    Args:
        view: The whole file, mapped.
        limits: What it may hold.

    Returns:
        The files in directory order, and the names of the folders, each ending in `/`.

    Raises:
        DatasetFormatError: bad_archive, encrypted_archive, ambiguous_archive, unsafe_entry_name, unsafe_entry_type,
            archive_too_large.
        OverBudget: It has too many names for the budget.
    """
    start, end, count = _find_directory(view)
    check_count(count, limits)
    check_names(count, limits)
    names = EntryNames()
    entries: list[Entry] = []
    folders: list[str] = []
    headers: list[int] = []
    ends: list[int] = []
    total = entries_read = 0
    at = start
    try:
        while at < end:
            entry, header, at = _read_entry(view, at, start, names)
            entries_read += 1
            check_count(entries_read, limits)
            check_names(entries_read + names.folder_count, limits)
            headers.append(header)
            ends.append(entry.offset + entry.stored_bytes)
            if not entry.path or entry.path[-1] == "/":
                folders.append(entry.path)
                continue
            total += entry.image_bytes
            _check_size(view, entry, total, limits)
            entries.append(entry)
    except struct.error:
        raise bad("the central directory is damaged") from None
    # Old writers count modulo 65,536 instead of using zip64.
    if at != end or (entries_read & 0xFFFF if count < 0xFFFF else entries_read) != count:
        raise bad(f"the central directory states {count} entries and holds {entries_read}")
    _check_overlap(headers, ends)
    names.check_folders()
    return entries, folders


def _find_directory(view: mmap.mmap) -> tuple[int, int, int]:
    """Where the central directory starts and ends, and how many entries it states."""
    size = len(view)
    tail_at = max(0, size - END.size - MAX_COMMENT)
    tail = view[tail_at:]
    ends: list[int] = []
    at = tail.rfind(b"PK\x05\x06")
    last = at
    while at >= 0:
        if at + END.size <= len(tail) and at + END.size + END.unpack_from(tail, at)[-1] == len(tail):
            ends.append(tail_at + at)
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if not ends:
        raise bad("bytes follow the end of the zip" if last >= 0 else "the zip has no end: it is truncated")
    if len(ends) > 1:
        raise ambiguous("the zip has two ends, which readers resolve differently")
    end_at = ends[0]
    _, disk, first_disk, here, count, length, start, _ = END.unpack_from(view, end_at)
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF) or here != count:
        raise bad("zips in several parts are not accepted")
    locator_at = end_at - END64_LOCATOR.size
    if locator_at >= 0 and view[locator_at : locator_at + 4] == b"PK\x06\x07":
        end_at, length, start, count = _find_directory64(view, locator_at, (length, start, count))
    if start + length != end_at:
        raise bad("the central directory is not where the zip says: bytes were added before it, or it is truncated")
    return start, end_at, count


def _find_directory64(view: mmap.mmap, locator_at: int, plain: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The zip64 end record: its place, and length, start and count of the directory."""
    _, _, at, disks = END64_LOCATOR.unpack_from(view, locator_at)
    if at + END64.size > locator_at or view[at : at + 4] != b"PK\x06\x06" or disks > 1:
        raise bad("the zip64 end record is damaged")
    _, record_bytes, _, _, disk, first_disk, here, count, length, start = END64.unpack_from(view, at)
    if at + 12 + record_bytes != locator_at or disk or first_disk or here != count:
        raise bad("the zip64 end record is damaged")
    for old, new, full in zip(plain, (length, start, count), (IN_ZIP64, IN_ZIP64, 0xFFFF), strict=True):
        if old not in (new, full):
            raise ambiguous("the zip's two end records disagree")
    return at, length, start, count


def _read_entry(view: mmap.mmap, at: int, directory: int, names: EntryNames) -> tuple[Entry, int, int]:
    """The directory entry at `at`, held against its local header; also where that header and the next entry start."""
    (magic, flags, method, crc, stored, size, name_bytes, extra_bytes, comment_bytes, disk, attributes, header) = (
        CENTRAL.unpack_from(view, at)
    )
    if magic != b"PK\x01\x02":
        raise bad("the central directory is damaged")
    name_at = at + CENTRAL.size
    name_end = name_at + name_bytes
    raw = view[name_at:name_end]
    path = names.add(raw)
    if flags & ENCRYPTED or method == 99:
        raise DatasetFormatError("encrypted_archive", f"{printable(path)!r} is encrypted", path)
    if method not in (STORED, DEFLATED):
        raise bad(f"{printable(path)!r} is compressed by {METHODS.get(method, method)}; only deflate is read", path)
    if attributes >> 28 not in REGULAR:  # the file type of the unix mode
        raise DatasetFormatError("unsafe_entry_type", f"{printable(path)!r} is a link or a device", path)
    saturated = IN_ZIP64 in (stored, size, header)
    if extra_bytes or saturated:
        extra = view[name_end : name_end + extra_bytes]
        _check_second_name(extra, raw, path)
        if saturated:
            stored, size, header = _zip64(extra, path, size, stored, header)
    if disk not in (0, 0xFFFF):
        raise bad("zips in several parts are not accepted", path)
    if (method == STORED and stored != size) or (size and path[-1:] == "/"):
        raise ambiguous(f"{printable(path)!r} states two sizes", path)
    if header + LOCAL.size > directory or view[header : header + 4] != b"PK\x03\x04":
        raise bad(f"the data of {printable(path)!r} is not where the zip says", path)
    if saturated or view[header + 4 : header + 28] != view[at + 6 : at + 30]:
        _compare_headers(view, header, (flags, method, name_bytes), (crc, stored, size), path)
    local_name = header + LOCAL.size
    offset = local_name + name_bytes + view[header + 28] + (view[header + 29] << 8)
    if view[local_name : local_name + name_bytes] != raw:
        raise ambiguous(f"the two headers of {printable(path)!r} disagree", path)
    if offset + stored > directory:
        raise bad(f"the data of {printable(path)!r} is not where the zip says", path)
    return Entry(path, offset, stored, method == DEFLATED, size, crc), header, name_end + extra_bytes + comment_bytes


def _compare_headers(
    view: mmap.mmap, header: int, form: tuple[int, int, int], stated: tuple[int, int, int], path: str
) -> None:
    """The headers differ in some byte: only versions and times may differ, and what `_compare_sizes` allows."""
    flags, method, name_bytes = form
    _, _, local_flags, local_method, _, _, *sizes, local_name, _ = LOCAL.unpack_from(view, header)
    if local_name != name_bytes or local_method != method or (local_flags ^ flags) & COMPARED:
        raise ambiguous(f"the two headers of {printable(path)!r} disagree", path)
    if tuple(sizes) != stated:
        _compare_sizes(view, header, sizes, stated, path, described=bool(flags & DESCRIPTOR))


def _compare_sizes(
    view: mmap.mmap, header: int, sizes: list[int], stated: tuple[int, int, int], path: str, *, described: bool
) -> None:
    """The local header may hold zeros (a descriptor follows) or refer to its zip64 field, but state no other size."""
    crc, stored, size = stated
    _, *_, local_name, local_extra = LOCAL.unpack_from(view, header)
    if IN_ZIP64 in sizes[1:]:
        extra_at = header + LOCAL.size + local_name
        sizes[1], sizes[2], _ = _zip64(view[extra_at : extra_at + local_extra], path, sizes[2], sizes[1], 0)
    for local, central in zip(sizes, (crc, stored, size), strict=True):
        if local != central and not (described and local == 0):
            raise ambiguous(f"the two headers of {printable(path)!r} disagree", path)


def _zip64(extra: bytes, path: str, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Stored size, size and header offset, with the saturated ones taken from the zip64 field."""
    for kind, body in _extra_fields(extra):
        if kind != 0x0001:
            continue
        values = [value for (value,) in struct.iter_unpack("<Q", body[: len(body) // 8 * 8])]
        if len(values) < (size, stored, header).count(IN_ZIP64):
            break
        size = values.pop(0) if size == IN_ZIP64 else size
        stored = values.pop(0) if stored == IN_ZIP64 else stored
        header = values.pop(0) if header == IN_ZIP64 else header
        if max(size, stored, header) >= 1 << 63:
            break
        return stored, size, header
    raise bad(f"the zip64 field of {printable(path)!r} is damaged", path)


def _extra_fields(extra: bytes) -> list[tuple[int, bytes]]:
    """Kind and body of each extra field."""
    fields = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        fields.append((kind, extra[at + 4 : at + 4 + length]))
        at += 4 + length
    return fields


def _check_second_name(extra: bytes, raw: bytes, path: str) -> None:
    """Info-ZIP's second, Unicode name (0x7075) must be the first one."""
    for kind, body in _extra_fields(extra):
        if kind == 0x7075 and body[5:] != raw:
            raise ambiguous(f"{printable(path)!r} has a second name; pack the archive with UTF-8 names", path)


def _check_size(view: mmap.mmap, entry: Entry, total: int, limits: Limits) -> None:
    """The limits on size and ratio; and that the first bytes do not already inflate to more than the stated size."""
    path, _, stored, deflated, size, _ = entry
    if size > limits.entry_bytes or total > limits.total_bytes:
        check_bytes(path, size, total, limits)
    if size > limits.ratio_from_bytes and size > limits.ratio * stored:
        raise too_large(f"{printable(path)!r} inflates more than {limits.ratio:g} times", path)
    if deflated and stored >= PROBE_BYTES:
        probe = view[entry.offset : entry.offset + PROBE_BYTES]
        try:
            inflated = len(zlib.decompressobj(-15).decompress(probe, size + 1))
        except zlib.error:
            return  # one damaged entry is left out later, with its name in the report
        if inflated > size:
            raise too_large(f"{printable(path)!r} is larger than the archive states", path)


def _check_overlap(headers: list[int], ends: list[int]) -> None:
    """Refuse entries that overlap. Usually they lie in directory order, and one pass shows that they do not."""
    if any(map(operator.lt, headers[1:], ends)):
        order = sorted(range(len(headers)), key=headers.__getitem__)
        headers, ends = [headers[at] for at in order], [ends[at] for at in order]
        if any(map(operator.lt, headers[1:], ends)):
            raise ambiguous("entries of the zip overlap each other")
