"""Frames that arrive slowly or never cost their own connection, and no other client its answer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any

from app.predictions import frames
from tests import frame_reader
from tests.worker.inference_server import serving

PART_BYTES = 100_000
LIMITS: dict[str, Any] = {"predict_body_bytes": PART_BYTES, "unfinished_frame_bytes": PART_BYTES}
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def begin(port: int, arrived: int, announced: int = PART_BYTES) -> Streams:
    """A connection on which `arrived` bytes of a frame have been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = frames.encode({"id": "slow"}, [b"x" * announced])[0]
    writer.write(line + b"x" * arrived)
    await writer.drain()
    return reader, writer


async def is_answered(port: int) -> bool:
    """Whether a request on a new connection gets its reply, which is a refusal as it has no image."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.writelines(frames.encode({"id": "honest"}))
    frame = await anext(frame_reader.read(reader))
    writer.close()
    return bool(frame.header["id"] == "honest")


async def is_closed(streams: Streams) -> bool:
    with contextlib.suppress(ConnectionResetError):
        assert await streams[0].read() == b""
    streams[1].close()
    return True


def test_unfinished_frames_share_a_bounded_memory_and_the_oldest_is_cut_off(tmp_path: Path) -> None:
    async def attack() -> None:
        async with (
            asyncio.timeout(60),
            serving(tmp_path, **LIMITS | {"unfinished_frame_bytes": 2 * PART_BYTES}) as port,
        ):
            slow = [await begin(port, PART_BYTES - 1) for _ in range(4)]
            # Two fit; with the third and the fourth the first two go.
            assert await is_closed(slow[0])
            assert await is_closed(slow[1])
            assert await is_answered(port)
            slow[3][1].write(b"x")  # what still fits is completed
            frame = await anext(frame_reader.read(slow[3][0]))
            assert frame.header["id"] == "slow"
            for _, writer in slow[2:]:
                writer.close()

    asyncio.run(attack())


def test_a_frame_has_limited_time(tmp_path: Path) -> None:
    async def wait() -> None:
        limits = LIMITS | {"unfinished_frame_s": 0.3}
        async with asyncio.timeout(60), serving(tmp_path, **limits) as port:
            started = time.monotonic()
            slow = await begin(port, 10)
            assert await is_answered(port)
            assert await is_closed(slow)
            assert time.monotonic() - started >= 0.29

    asyncio.run(wait())


def test_a_frame_that_announces_too_much_is_cut_off_at_once(tmp_path: Path) -> None:
    async def announce() -> None:
        async with asyncio.timeout(60), serving(tmp_path, **LIMITS) as port:
            assert await is_closed(await begin(port, 0, announced=PART_BYTES + 1))
            assert await is_answered(port)

    asyncio.run(announce())
