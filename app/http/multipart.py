"""multipart/form-data as a stream of events: nothing is buffered beyond the chunk in hand. Limits are H2's.

What a part means, and where its bytes go, the caller decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import Malformed, TooLarge

HEADER_BYTES = 16 * 1024  # of one part
BOUNDARY_BYTES = 200  # RFC 2046 allows 70


@dataclass(frozen=True)
class Begin:
    """A part starts. `filename` is display text of the client; it names no file of ours."""

    name: str
    filename: str | None
    media_type: str


@dataclass(frozen=True)
class Data:
    data: bytes


@dataclass(frozen=True)
class End:
    """The part is complete."""


Event = Begin | Data | End


class Parts:
    """Feed bytes, get the events they complete; Malformed, or TooLarge for too many parts."""

    def __init__(self, content_type: str, *, most: int = 16) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= BOUNDARY_BYTES:
            raise Malformed("multipart/form-data needs a boundary.")
        self._events: list[Event] = []
        self._most, self._count, self._ended = most, 0, False
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
                "on_part_end": lambda: self._events.append(End()),
                "on_end": self._end,
            },
            max_header_size=HEADER_BYTES,
            max_header_count=16,
        )

    def feed(self, chunk: bytes) -> list[Event]:
        self._checked(lambda: self._parser.write(chunk))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """The body has ended; Malformed when its last boundary never came."""
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
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise Malformed("Every part needs Content-Disposition: form-data with a name.")
        filename = options.get(b"filename")
        media_type = self._headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()
        text = None if filename is None else filename.decode("utf-8", "replace")
        self._events.append(Begin(options[b"name"].decode("utf-8", "replace"), text, media_type.decode("latin-1")))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(Data(bytes(data[start:end])))

    def _end(self) -> None:
        self._ended = True
