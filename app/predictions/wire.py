"""Frames between the API and an inference process: one JSON header line, then raw bytes. No base64, no pickle.

    header line   {"id": "...", "model": "...", ..., "sizes": [3072, 2891]}\n
    body          the bytes of every part, in order, `sizes` long

Requests  model, top_k, threshold, masks, mask_threshold, render (null, "overlay" or "mask"), deadline_s; parts are the
          encoded images.
Replies   `results`: one object an image, either a prediction or {"error": {code, status, title, detail}};
          `parts`: for each result the number of its part, or null (rendered pictures); `timing_seconds`;
          or, for the whole frame, `error` {code, status, title, detail, retry_after_s}.
Several frames may be under way on one connection; `id` pairs a reply with its request. Both ends bound what they read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

HEADER_BYTES = 4 * 1024 * 1024  # a reply of 32 images with polygons and run-lengths stays far below
FRAME_BYTES = 512 * 1024 * 1024


class Frame(NamedTuple):
    header: dict[str, Any]
    parts: list[bytes]


class BadFrame(ConnectionError):
    """The other end does not speak this protocol; the connection is of no further use."""


def encode(header: dict[str, Any], parts: Sequence[bytes] = ()) -> list[bytes]:
    """Buffers to write, in order; parts are not copied."""
    line = json.dumps(header | {"sizes": [len(p) for p in parts]}, separators=(",", ":"), allow_nan=False)
    return [line.encode() + b"\n", *parts]


async def read(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, or None at a clean end of the connection. The reader needs `limit=HEADER_BYTES`."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadFrame("connection ended inside a header") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadFrame("header too long") from error
    try:
        header = json.loads(line)
        sizes = header["sizes"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFrame("not a frame header") from error
    if not all(type(n) is int and n >= 0 for n in sizes) or sum(sizes) > FRAME_BYTES:
        raise BadFrame("impossible sizes")
    try:
        return Frame(header, [await reader.readexactly(n) for n in sizes])
    except asyncio.IncompleteReadError as error:
        raise BadFrame("connection ended inside a body") from error


class Address(NamedTuple):
    """`tcp://host:port` or `unix:///path`."""

    host: str | None
    port: int
    path: str | None


def parse(address: str) -> Address:
    parts = urlsplit(address.strip())
    if parts.scheme == "unix" and parts.path:
        return Address(None, 0, parts.path)
    if parts.scheme == "tcp" and parts.hostname and parts.port is not None:
        return Address(parts.hostname, parts.port, None)
    raise ValueError(f"not an inference address: {address!r}; write tcp://host:port or unix:///path")
