"""Reads format, size and EXIF orientation from the first bytes of an image file, and checks limits.

No decoder is imported: headers are checked before a decoder allocates memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from ml.errors import UndecodableImage

MAX_PIXELS = 25_000_000
MAX_WEBP_PIXELS = 15_000_000  # its decoder goes through animation canvases: 16 bytes a pixel, the others need 4
MAX_SIDE = 10_000
MAX_TEXT_BYTES = 1 << 20
MAX_SCANS = 100  # of a JPEG; encoders write a dozen. Each costs as much as all pixels, even if it is ten bytes long
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))  # JPEG markers without a segment behind them
NO_FRAME = frozenset((0xC4, 0xC8, 0xCC))  # markers in the range of SOF0..SOF15 that start no frame
PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_next_marker = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]").search  # what no compressed data has: there 0 follows 255


class Header(NamedTuple):
    """Size in pixels before any EXIF rotation, and format by Pillow's name."""

    width: int
    height: int
    format: str


def header(data: bytes) -> Header:
    """Size and format of an image file, recognised by its content.

    Raises:
        UndecodableImage: It is no image in a supported format, is damaged, or exceeds a limit.
    """
    if not data:
        raise UndecodableImage("empty_file", "the file is empty")
    try:
        parsed = _read_header(data)
    except (struct.error, IndexError):
        raise UndecodableImage("damaged_image", "the file ends inside its header") from None
    if parsed is None:
        raise UndecodableImage("unsupported_format", "not a JPEG, PNG, WebP, BMP or GIF")
    check_size(*parsed)
    return parsed


def check_size(width: int, height: int, kind: str) -> None:
    """Refuse a size that no image has, or that exceeds a limit; UndecodableImage."""
    if width < 1 or height < 1:
        raise UndecodableImage("damaged_image", f"the {kind} header states a size of {width}x{height}")
    most = MAX_WEBP_PIXELS if kind == "WEBP" else MAX_PIXELS
    if width > MAX_SIDE or height > MAX_SIDE or width * height > most:
        limit = f"at most {most // 1_000_000} million pixels and {MAX_SIDE} a side"
        raise UndecodableImage("image_too_large", f"{width}x{height} pixels; {limit}")


def _read_header(data: bytes) -> Header | None:
    if data.startswith(JPEG_START):
        return _jpeg_header(data)
    if data.startswith(PNG_START):
        _refuse_long_text(data)
        width, height = struct.unpack_from(">II", data, 16)
        return Header(width, height, "PNG")
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack_from("<HH", data, 6)
        return Header(width, height, "GIF")
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_header(data)
    if data.startswith(b"BM"):
        core = struct.unpack_from("<I", data, 14)[0] == 12  # the OS/2 header has 16-bit sides
        width, height = struct.unpack_from("<HH" if core else "<ii", data, 18)
        return Header(width, abs(height), "BMP")  # a negative height means top-down rows
    return None


def _jpeg_header(data: bytes) -> Header | None:
    for marker, start in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            height, width = struct.unpack_from(">HH", data, start + 1)
            _refuse_many_scans(data, start, is_progressive=marker in PROGRESSIVE)
            return Header(width, height, "JPEG")
    raise UndecodableImage("damaged_image", "the JPEG has no frame")


def _refuse_many_scans(data: bytes, frame: int, *, is_progressive: bool) -> None:
    """Refuse a JPEG that describes its pixels more than `MAX_SCANS` times.

    Args:
        data: The file.
        frame: Where the payload of its frame header starts.
        is_progressive: Whether it is of a kind that has several scans of the same components.
    """
    components, scans = data[frame + 5], 0
    at = frame - 2 + int.from_bytes(data[frame - 2 : frame], "big")
    while match := _next_marker(data, at):
        marker, at = data[match.end() - 1], match.end()
        if marker == 0xD9:  # the end
            return
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise UndecodableImage("image_too_large", f"the JPEG has more than {MAX_SCANS} scans")
            if not is_progressive and data[at + 2] == components:  # it describes all of them
                return
        if marker != 0xD8:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers and where their payload starts, up to the frame header: enough for size and EXIF."""
    at = 2
    while True:
        if data[at] != 0xFF:
            at += 1  # bytes between segments: decoders skip them with a warning
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00) or marker in NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            return
        yield marker, at + 4
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAME:
            return
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _webp_header(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, "WEBP")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WEBP")
    if kind == b"VP8X":
        sides = struct.unpack_from("<3s3s", data, 24)
        width, height = (int.from_bytes(side, "little") + 1 for side in sides)
        return Header(width, height, "WEBP")
    return None


def _refuse_long_text(data: bytes) -> None:
    at = len(PNG_START)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind in (b"tEXt", b"zTXt", b"iTXt") and length > MAX_TEXT_BYTES:
            raise UndecodableImage("image_too_large", f"a text chunk of {length} bytes; at most {MAX_TEXT_BYTES}")
        at += 12 + length


def jpeg_exif(data: bytes) -> bytes | None:
    """The EXIF segment of a JPEG, from `Exif` on; None where there is none."""
    for marker, start in _segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            return data[start : start + 0xFFFF]
    return None


def orientation(exif: bytes | None) -> int:
    """The orientation, 1 to 8, in the first directory of EXIF data; 1 where it is absent or unreadable."""
    if not exif:
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        directory = struct.unpack_from(order + "I", tiff, 4)[0]
        for entry in range(struct.unpack_from(order + "H", tiff, directory)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", tiff, directory + 2 + 12 * entry)
            if tag == 0x0112:
                return value if (kind, count) == (3, 1) and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1
