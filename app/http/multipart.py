"""multipart/form-data as a stream of events, within the limits of H2. At most one chunk of the body is in memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import Malformed, TooLarge

HEADER_BYTES = 16 * 1024  # of one part
MOST_HEADERS = 16
BOUNDARY_BYTES = 200  # RFC 2046 allows 70
# Common forms of these headers; any other form is left to the parser.
HEADER = re.compile(rb"([A-Za-z-]+): ?([!-~](?:[ -~]*[!-~])?)")
BOUNDARY = re.compile(r"multipart/form-data; ?boundary=([A-Za-z0-9_.'-]{1,70})")
FILE = re.compile(rb'form-data; name="([A-Za-z0-9_-]+)"; filename="([A-Za-z0-9_. -]+)"')


@dataclass(frozen=True)
class PartBegin:
    """A part begins. `filename` is text of the client for display; no path is made from it."""

    name: str
    filename: str | None
    media_type: str


@dataclass(frozen=True)
class PartData:
    """Some bytes of the part's content."""

    data: bytes


@dataclass(frozen=True)
class PartEnd:
    """The part ends."""


Event = PartBegin | PartData | PartEnd


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type header; Malformed when there is none or it is too long."""
    if plain := BOUNDARY.fullmatch(content_type):
        return plain[1].encode()
    _, options = parse_options_header(content_type)
    boundary: bytes = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= BOUNDARY_BYTES:
        raise Malformed("multipart/form-data needs a boundary.")
    return boundary


def begin(headers: dict[bytes, bytes]) -> PartBegin:
    """The beginning of a part with these headers, whose names are in lower case; Malformed without a name."""
    name, filename = _names(headers.get(b"content-disposition", b""))
    media_type = headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
    text = None if filename is None else filename.decode("utf-8", "replace")
    return PartBegin(name.decode("utf-8", "replace"), text, media_type.decode("latin-1"))


def _names(disposition: bytes) -> tuple[bytes, bytes | None]:
    """The name of a part and that of its file."""
    if plain := FILE.fullmatch(disposition):
        return plain[1], plain[2]
    kind, options = parse_options_header(disposition)
    if kind != b"form-data" or b"name" not in options:
        raise Malformed("Every part needs Content-Disposition: form-data with a name.")
    return options[b"name"], options.get(b"filename")


def single_part(content_type: str, body: bytes) -> tuple[PartBegin, bytes] | None:
    """The part of a complete body with exactly one part, read without a parser: most predictions are such a body.

    Returns:
        The beginning of the part and its content; None for any other body, which `MultipartReader` must read.
    """
    boundary = boundary_of(content_type)
    first, last = b"--" + boundary + b"\r\n", b"\r\n--" + boundary
    head, end = body.find(b"\r\n\r\n", 0, HEADER_BYTES), len(body) - len(last) - len(b"--\r\n")
    if head < 0 or not body.startswith(first) or not body.endswith(last + b"--\r\n"):
        return None
    # The closing delimiter is the only one, and its line break is not the one that ends the headers.
    if body.find(last, head + 2) != end or end < head + 4:
        return None
    lines = body[len(first) : head].split(b"\r\n")
    headers = [match.groups() for line in lines if (match := HEADER.fullmatch(line))]
    if len(headers) != len(lines) or len(lines) > MOST_HEADERS:
        return None
    return begin({name.lower(): value for name, value in headers}), body[head + 4 : end]


class MultipartReader:
    """Parses a body that is fed in chunks.

    Args:
        content_type: The Content-Type of the request, with its boundary.
        most: The most parts allowed.
    """

    def __init__(self, content_type: str, *, most: int = 16) -> None:
        boundary = boundary_of(content_type)
        self._events: list[Event] = []
        self._most, self._count, self._begun, self._ended = most, 0, False, False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begins,
                "on_header_field": self._field,
                "on_header_value": self._content,
                "on_header_end": self._header_ends,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": lambda: self._events.append(PartEnd()),
                "on_end": self._end,
            },
            max_header_size=HEADER_BYTES,
            max_header_count=MOST_HEADERS,
        )

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes; Malformed, or TooLarge for too many parts or too long headers."""
        if not self._begun:  # the parser would skip more than newlines, and not the same in other chunks
            chunk = chunk.lstrip(b"\r\n")
            self._begun = bool(chunk)
        self._checked(lambda: self._parser.write(chunk))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Declare the end of the body; Malformed when its last boundary is missing."""
        self._checked(self._parser.finalize)
        if not self._ended:
            raise Malformed("The multipart body ends before its last boundary.")

    @staticmethod
    def _checked(act: Callable[[], object]) -> None:
        try:
            act()
        except FormParserError:
            raise Malformed("The multipart body cannot be parsed.") from None

    def _part_begins(self) -> None:
        self._count += 1
        if self._count > self._most:
            raise TooLarge(f"A request may have at most {self._most} parts.")
        self._headers.clear()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_ends(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        self._events.append(begin(self._headers))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(bytes(data[start:end])))

    def _end(self) -> None:
        self._ended = True
