"""The inference process: frames in, micro-batches through `ml.predict`, frames out.

It serves without database and without broker. A client can neither end it nor harm another client: a bad frame costs
its connection, a bad image its own result. What batches are made of is `worker.batcher`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import logs
from app.db.session import connect
from app.predictions import wire
from app.settings import Settings, current
from app.storage import Storage
from worker import presence
from worker.batcher import Batcher, Refused, Request
from worker.shelf import Shelf

log = logging.getLogger(__name__)

LOOK_S = 0.5  # how often the folder of models is looked at
OUTBOX_BYTES = 64 * 1024 * 1024  # a client that does not read its replies is cut off


class Connection:
    """One client: reads its frames, writes replies in the order in which they are ready."""

    def __init__(self, batcher: Batcher, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._batcher = batcher
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()

    async def serve(self) -> None:
        try:
            while frame := await wire.read(self._reader):
                self._take(frame)
        except (wire.BadFrame, ConnectionError, TimeoutError) as error:
            log.warning("connection closed: %s", error)
        finally:
            self._writer.close()

    def _take(self, frame: wire.Frame) -> None:
        identity = frame.header.get("id")
        try:
            request = parse(frame, lambda header, parts: self._loop.call_soon_threadsafe(self._write, header, parts))
            self._batcher.submit(request)
        except Refused as refused:
            self._write({"id": identity, "error": refused.error}, ())

    def _write(self, header: dict[str, Any], parts: Sequence[bytes]) -> None:
        if self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > OUTBOX_BYTES:
            log.warning("connection closed: its replies are not read")
            self._writer.transport.abort()
            return
        self._writer.writelines(wire.encode(header, parts))


def parse(frame: wire.Frame, reply: Any) -> Request:
    """A request out of a frame, its fields checked; Refused when they make no sense."""
    header = frame.header
    try:
        model = uuid.UUID(header["model"])
        options = {key: header[key] for key in OPTIONS & header.keys()}
        request = Request(str(header["id"]), model, frame.parts, options, float(header["deadline_s"]), reply)
    except (KeyError, TypeError, ValueError) as error:
        raise Refused("malformed", 400, f"not a request: {type(error).__name__}") from error
    if not frame.parts:
        raise Refused("malformed", 400, "not a request: no image")
    return request


OPTIONS = {"top_k", "threshold", "masks", "mask_threshold", "render"}


async def serve(settings: Settings, batcher: Batcher, ended: asyncio.Event) -> None:
    """Listen until told to end; a socket file left behind by a dead process is replaced."""
    address = wire.parse(settings.inference_listen)
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await Connection(batcher, reader, writer).serve()
        finally:
            connections.discard(task)

    if address.path is not None:
        with contextlib.suppress(FileNotFoundError):
            Path(address.path).unlink()  # noqa: ASYNC240 - before anybody is served
        server = await asyncio.start_unix_server(connected, address.path, limit=wire.HEADER_BYTES)
        Path(address.path).chmod(0o600)  # noqa: ASYNC240
    else:
        server = await asyncio.start_server(connected, address.host, address.port, limit=wire.HEADER_BYTES)
    log.info("listening at %s", settings.inference_listen)
    async with server:
        await ended.wait()
        server.close()
        for task in connections:
            task.cancel()


async def run(settings: Settings, batcher: Batcher) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await serve(settings, batcher, ended)


def live(settings: Settings, shelf: Shelf, batcher: Batcher, ended: threading.Event) -> None:
    """Say that we are here while the database lets us, and take the newest model from disk before anybody asks."""
    engine = connect(settings)
    row = presence.Presence(engine, "inference", shelf.device, presence.name())
    models, seen, told = Storage(settings.data_dir).root / "models", 0, float("-inf")
    while not ended.is_set():
        changed = models.stat().st_mtime_ns
        if changed != seen:  # a model was published or deleted
            seen = changed
            batcher.warm()
        if time.monotonic() - told >= settings.presence_s:
            told = time.monotonic()
            row.tell()
        ended.wait(LOOK_S)
    row.end()
    engine.dispose()


def main() -> None:
    settings = current()
    logs.configure(settings.log_level, process="inference")
    files = Storage(settings.data_dir)
    files.create()
    shelf = Shelf(files, presence.device(settings), settings.models_in_memory, settings.threads or os.cpu_count() or 1)
    batcher = Batcher(settings, shelf)
    ended = threading.Event()
    alive = threading.Thread(target=live, args=(settings, shelf, batcher, ended), name="presence", daemon=True)
    batcher.start()
    alive.start()
    try:
        asyncio.run(run(settings, batcher))
    finally:
        ended.set()
        batcher.end()
        alive.join(settings.connect_timeout_s * 2)


if __name__ == "__main__":
    main()
