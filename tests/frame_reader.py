"""Frames of the inference socket, read from a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from app.predictions.frames import Frame, FrameParser


async def read(reader: asyncio.StreamReader) -> AsyncIterator[Frame]:
    """Every frame until the other end closes."""
    frames = FrameParser()
    while data := await reader.read(65536):
        for frame in frames.feed(data):
            yield frame
