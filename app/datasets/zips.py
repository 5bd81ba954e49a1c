"""The central directory of a zip, read by ourselves and held against every local header.

Every reader of a zip chooses whom to believe where the two disagree; we refuse such archives (Z4). Sizes are believed
only as far as nothing larger will ever be inflated.
"""

from __future__ import annotations

import mmap
import operator
import stat
import struct
import zlib

from app.datasets.entries import Entry, Limits, ambiguous, bad, require, require_size, too_large
from app.datasets.names import Names
from app.errors import ArchiveRejected, shown

END = struct.Struct("<4s4H2LH")
END64_LOCATOR = struct.Struct("<4sLQL")
END64 = struct.Struct("<4sQ2H2L4Q")
# Of the directory's fields only those we use: magic, flags, method, CRC, stored, size, three lengths, disk, attributes,
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
PROBE_BYTES = 1 << 14  # how much of an entry is inflated to catch one that lies about its size
REGULAR = (0, stat.S_IFREG >> 12, stat.S_IFDIR >> 12)
METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstd", 95: "xz", 98: "ppmd", 99: "AES"}


def read(view: mmap.mmap, limits: Limits) -> tuple[list[Entry], list[str]]:
    """Files and folders in directory order; raises ArchiveRejected."""
    start, end, count = _directory(view)
    require(count, limits)
    names = Names()
    entries: list[Entry] = []
    folders: list[str] = []
    headers: list[int] = []
    ends: list[int] = []
    total = seen = 0
    at = start
    try:
        while at < end:
            entry, header, at = _entry(view, at, start, names)
            seen += 1
            require(seen, limits)
            headers.append(header)
            ends.append(entry.offset + entry.stored_bytes)
            if not entry.path or entry.path[-1] == "/":
                folders.append(entry.path)
                continue
            total += entry.image_bytes
            _require_honest(view, entry, total, limits)
            entries.append(entry)
    except struct.error:
        raise bad("the central directory is damaged") from None
    # Old writers count modulo 65,536 instead of using zip64.
    if at != end or (seen & 0xFFFF if count < 0xFFFF else seen) != count:
        raise bad(f"the central directory states {count} entries and holds {seen}")
    _require_apart(headers, ends)
    names.finish()
    return entries, folders


def _directory(view: mmap.mmap) -> tuple[int, int, int]:
    """Where the central directory starts and ends, and how many entries it states."""
    size = len(view)
    tail_at = max(0, size - END.size - MAX_COMMENT)
    tail = view[tail_at:]
    found: list[int] = []
    at = tail.rfind(b"PK\x05\x06")
    last = at
    while at >= 0:
        if at + END.size <= len(tail) and at + END.size + END.unpack_from(tail, at)[-1] == len(tail):
            found.append(tail_at + at)
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if not found:
        raise bad("bytes follow the end of the zip" if last >= 0 else "the zip has no end: it is truncated")
    if len(found) > 1:
        raise ambiguous("the zip has two ends, which readers resolve differently")
    end_at = found[0]
    _, disk, first_disk, here, count, length, start, _ = END.unpack_from(view, end_at)
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF) or here != count:
        raise bad("zips in several parts are not accepted")
    locator_at = end_at - END64_LOCATOR.size
    if locator_at >= 0 and view[locator_at : locator_at + 4] == b"PK\x06\x07":
        end_at, length, start, count = _directory64(view, locator_at, (length, start, count))
    if start + length != end_at:
        raise bad("the central directory is not where the zip says: bytes were added before it, or it is truncated")
    return start, end_at, count


def _directory64(view: mmap.mmap, locator_at: int, plain: tuple[int, int, int]) -> tuple[int, int, int, int]:
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


def _entry(view: mmap.mmap, at: int, directory: int, names: Names) -> tuple[Entry, int, int]:
    """The directory entry at `at`, held against its local header; also where that header and the next entry start."""
    (magic, flags, method, crc, stored, size, name_bytes, extra_bytes, comment_bytes, disk, attributes, header) = (
        CENTRAL.unpack_from(view, at)
    )
    if magic != b"PK\x01\x02":
        raise bad("the central directory is damaged")
    name_at = at + CENTRAL.size
    name_end = name_at + name_bytes
    raw = view[name_at:name_end]
    path = names.admit(raw)
    if flags & ENCRYPTED or method == 99:
        raise ArchiveRejected(f"{shown(path)!r} is encrypted", code="encrypted_archive", entry=path)
    if method not in (STORED, DEFLATED):
        raise bad(f"{shown(path)!r} is compressed by {METHODS.get(method, method)}; only deflate is read", path)
    if attributes >> 28 not in REGULAR:  # the file type of the unix mode
        raise ArchiveRejected(f"{shown(path)!r} is a link or a device", code="unsafe_entry_type", entry=path)
    saturated = IN_ZIP64 in (stored, size, header)
    if extra_bytes or saturated:
        extra = view[name_end : name_end + extra_bytes]
        _require_one_name(extra, raw, path)
        if saturated:
            stored, size, header = _zip64(extra, path, size, stored, header)
    if disk not in (0, 0xFFFF):
        raise bad("zips in several parts are not accepted", path)
    if (method == STORED and stored != size) or (size and path[-1:] == "/"):
        raise ambiguous(f"{shown(path)!r} states two sizes", path)
    if header + LOCAL.size > directory or view[header : header + 4] != b"PK\x03\x04":
        raise bad(f"the data of {shown(path)!r} is not where the zip says", path)
    if saturated or view[header + 4 : header + 28] != view[at + 6 : at + 30]:
        _require_agreement(view, header, (flags, method, name_bytes), (crc, stored, size), path)
    local_name = header + LOCAL.size
    offset = local_name + name_bytes + view[header + 28] + (view[header + 29] << 8)
    if view[local_name : local_name + name_bytes] != raw:
        raise ambiguous(f"the two headers of {shown(path)!r} disagree", path)
    if offset + stored > directory:
        raise bad(f"the data of {shown(path)!r} is not where the zip says", path)
    return Entry(path, offset, stored, method == DEFLATED, size, crc), header, name_end + extra_bytes + comment_bytes


def _require_agreement(
    view: mmap.mmap, header: int, form: tuple[int, int, int], stated: tuple[int, int, int], path: str
) -> None:
    """The headers differ in some byte: only versions and times may, and what `_require_sizes` allows."""
    flags, method, name_bytes = form
    _, _, local_flags, local_method, _, _, *sizes, local_name, _ = LOCAL.unpack_from(view, header)
    if local_name != name_bytes or local_method != method or (local_flags ^ flags) & COMPARED:
        raise ambiguous(f"the two headers of {shown(path)!r} disagree", path)
    if tuple(sizes) != stated:
        _require_sizes(view, header, sizes, stated, path, described=bool(flags & DESCRIPTOR))


def _require_sizes(
    view: mmap.mmap, header: int, sizes: list[int], stated: tuple[int, int, int], path: str, *, described: bool
) -> None:
    """The local header may be silent (a descriptor follows) or point to its zip64 field, but not contradict."""
    crc, stored, size = stated
    _, *_, local_name, local_extra = LOCAL.unpack_from(view, header)
    if IN_ZIP64 in sizes[1:]:
        extra_at = header + LOCAL.size + local_name
        sizes[1], sizes[2], _ = _zip64(view[extra_at : extra_at + local_extra], path, sizes[2], sizes[1], 0)
    for local, central in zip(sizes, (crc, stored, size), strict=True):
        if local != central and not (described and local == 0):
            raise ambiguous(f"the two headers of {shown(path)!r} disagree", path)


def _zip64(extra: bytes, path: str, size: int, stored: int, header: int) -> tuple[int, int, int]:
    """Stored size, size and header offset, with the saturated ones taken from the zip64 field."""
    for kind, body in _fields(extra):
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
    raise bad(f"the zip64 field of {shown(path)!r} is damaged", path)


def _fields(extra: bytes) -> list[tuple[int, bytes]]:
    found = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        found.append((kind, extra[at + 4 : at + 4 + length]))
        at += 4 + length
    return found


def _require_one_name(extra: bytes, raw: bytes, path: str) -> None:
    """Info-ZIP's second, Unicode name (0x7075) must be the first one."""
    for kind, body in _fields(extra):
        if kind == 0x7075 and body[5:] != raw:
            raise ambiguous(f"{shown(path)!r} has a second name; pack the archive with UTF-8 names", path)


def _require_honest(view: mmap.mmap, entry: Entry, total: int, limits: Limits) -> None:
    path, _, stored, deflated, size, _ = entry
    if size > limits.entry_bytes or total > limits.total_bytes:
        require_size(path, size, total, limits)
    if size > limits.ratio_from_bytes and size > limits.ratio * stored:
        raise too_large(f"{shown(path)!r} inflates more than {limits.ratio:g} times", path)
    if deflated and stored >= PROBE_BYTES:
        probe = view[entry.offset : entry.offset + PROBE_BYTES]
        try:
            inflated = len(zlib.decompressobj(-15).decompress(probe, size + 1))
        except zlib.error:
            return  # one damaged entry is left out later, with its name in the report
        if inflated > size:
            raise too_large(f"{shown(path)!r} is larger than the archive states", path)


def _require_apart(headers: list[int], ends: list[int]) -> None:
    """Usually they lie in directory order, and one pass shows it."""
    if any(map(operator.lt, headers[1:], ends)):
        spans = sorted(zip(headers, ends, strict=True))
        headers, ends = [header for header, _ in spans], [end for _, end in spans]
        if any(map(operator.lt, headers[1:], ends)):
            raise ambiguous("entries of the zip overlap each other")
