"""Frames between the API and an inference process: one JSON header line, then raw bytes. No base64, no pickle.

    header line   {"id": "...", "model": "...", ..., "sizes": [3072, 2891]}\n
    body          the bytes of every part, in order, `sizes` long

Requests  model, top_k, threshold, masks, mask_threshold, render (null, "overlay" or "mask"), deadline_s; parts are the
          encoded images.
Replies   `results`: one object an image, either a prediction or {"error": {code, status, title, detail}};
          `parts`: for each result the number of its part, or null (rendered pictures); `timing_seconds`;
          or, for the whole frame, `error` {code, status, title, detail, retry_after_s}.
Several requests may be in flight on one connection; a reply has the `id` of its request.
Both ends limit what they read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

log = logging.getLogger(__name__)

HEADER_BYTES = 4 * 1024 * 1024  # a reply of 32 images with polygons and run-lengths stays far below
FRAME_BYTES = 512 * 1024 * 1024


class Frame(NamedTuple):
    """A complete frame: its header without change, and its parts in order."""

    header: dict[str, Any]
    parts: list[bytes]


class BadFrame(ConnectionError):
    """The peer does not speak this protocol; the connection must be closed."""


def encode(header: dict[str, Any], parts: Sequence[bytes] = ()) -> list[bytes]:
    """Buffers to write, in order; parts are not copied. ValueError when a number of the header is not finite."""
    complete = header | {"sizes": [len(p) for p in parts]}
    line = to_json(complete)
    if b"NaN" in line or b"Infinity" in line:  # in a text, or as a number, which this encoder refuses
        line = json.dumps(complete, allow_nan=False).encode()
    return [line + b"\n", *parts]


class FrameParser:
    """Parses bytes as they arrive. After a BadFrame nothing more can be parsed.

    Args:
        most_bytes: Of a frame's parts together; a frame that announces more is bad.

    Attributes:
        completed: How many frames are complete.
    """

    def __init__(self, most_bytes: int = FRAME_BYTES) -> None:
        self.completed = 0
        self._most_bytes = most_bytes
        self._buffer = bytearray()
        self._header: dict[str, Any] | None = None  # of the frame whose body is still arriving
        self._sizes: list[int] = []

    @property
    def is_partial(self) -> bool:
        """Whether the bytes so far end inside a frame."""
        return bool(self._buffer) or self._header is not None

    @property
    def unfinished_bytes(self) -> int:
        """How many bytes of an unfinished frame are in memory."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete; BadFrame."""
        self._buffer += data
        frames: list[Frame] = []
        at = 0
        while True:
            if self._header is None:
                end = self._buffer.find(b"\n", at)
                if (len(self._buffer) if end < 0 else end) - at > HEADER_BYTES:
                    raise BadFrame("header too long")
                if end < 0:
                    break
                self._header, self._sizes = _parse_header(bytes(self._buffer[at:end]), self._most_bytes)
                at = end + 1
            if len(self._buffer) - at < sum(self._sizes):
                break
            parts = []
            for size in self._sizes:
                parts.append(bytes(self._buffer[at : at + size]))
                at += size
            frames.append(Frame(self._header, parts))
            self._header = None
        self.completed += len(frames)
        del self._buffer[:at]
        return frames


def _parse_header(line: bytes, most_bytes: int) -> tuple[dict[str, Any], list[int]]:
    try:
        header = from_json(line)
        sizes = header["sizes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadFrame("not a frame header") from error
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) > most_bytes:
        raise BadFrame("impossible sizes")
    return header, sizes


class FrameProtocol(asyncio.Protocol):
    """One end of a connection: complete frames go to `frames_received`; a bad frame closes the connection.

    Args:
        most_bytes: Of the parts of a frame that is received.
    """

    def __init__(self, most_bytes: int = FRAME_BYTES) -> None:
        self._parser = FrameParser(most_bytes)

    def frames_received(self, received: list[Frame]) -> None:
        """Handle frames that have become complete together."""

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # what a stream's protocol gets

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parser.is_partial:
            log.warning("connection ended inside a frame")

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._parser.feed(data)
        except BadFrame as error:
            log.warning("connection ended: %s", error)
            self._transport.abort()
        else:
            self.frames_received(frames)


class Address(NamedTuple):
    """A TCP address, or the path of a Unix socket; `host` or `path` is None."""

    host: str | None
    port: int
    path: str | None


def parse_address(address: str) -> Address:
    """Parse `tcp://host:port` or `unix:///path`; ValueError for any other text."""
    parts = urlsplit(address.strip())
    if parts.scheme == "unix" and parts.path:
        return Address(None, 0, parts.path)
    if parts.scheme == "tcp" and parts.hostname and parts.port is not None:
        return Address(parts.hostname, parts.port, None)
    raise ValueError(f"not an inference address: {address!r}; write tcp://host:port or unix:///path")
