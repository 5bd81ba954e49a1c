"""The inference process: frames in, micro-batches through `ml.serving.predictor`, frames out.

It serves without database and without broker. A client can neither end it nor harm another client: a bad frame costs
its connection, a bad image its own result. What batches are made of is `worker.inference.batcher`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from app import logs
from app.db.session import connect
from app.predictions import frames
from app.settings import Settings, current
from app.storage import Storage
from worker import heartbeat
from worker.inference.batcher import Batcher, Refused, Request
from worker.inference.model_cache import ModelCache

log = logging.getLogger(__name__)

LOOK_S = 0.5  # how often the folder of models is looked at
OUTBOX_BYTES = 64 * 1024 * 1024  # a client that does not read its replies is cut off


class Connection(frames.FrameProtocol):
    """One client: its frames in; replies out in the order in which they are ready, all that are ready in one write."""

    def __init__(self, batcher: Batcher, open_ones: set[Connection]) -> None:
        super().__init__()
        self._batcher = batcher
        self._open_ones = open_ones
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[list[bytes]] = deque()  # filled by the model's and the pool's threads
        self._writing = threading.Lock()  # held from the first reply of a write until it is written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._open_ones.discard(self)

    def frames_received(self, frames: list[frames.Frame]) -> None:
        requests = []
        for frame in frames:
            try:
                requests.append(parse(frame, self.reply))
            except Refused as refused:
                self.reply({"id": frame.header.get("id"), "error": refused.error}, ())
        if requests:
            self._batcher.submit(requests)

    def reply(self, header: dict[str, Any], parts: Sequence[bytes]) -> None:
        """Called by any thread. The first reply wakes the loop; those that follow until it wakes go with it."""
        self._outbox.append(frames.encode(header, parts))
        if self._writing.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                self._loop.call_soon_threadsafe(self._write)

    def _write(self) -> None:
        self._writing.release()
        ready = [buffer for _ in range(len(self._outbox)) for buffer in self._outbox.popleft()]
        if not ready or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > OUTBOX_BYTES:
            log.warning("connection closed: its replies are not read")
            self._transport.abort()
            return
        self._transport.writelines(ready)


def parse(frame: frames.Frame, reply: Any) -> Request:
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
    address = frames.parse_address(settings.inference_listen)
    loop = asyncio.get_running_loop()
    connections: set[Connection] = set()

    def connection() -> Connection:
        return Connection(batcher, connections)

    if address.path is not None:
        with contextlib.suppress(FileNotFoundError):
            Path(address.path).unlink()  # noqa: ASYNC240 - before anybody is served
        server = await loop.create_unix_server(connection, address.path)
        Path(address.path).chmod(0o600)  # noqa: ASYNC240
    else:
        server = await loop.create_server(connection, address.host, address.port)
    log.info("listening at %s", settings.inference_listen)
    async with server:
        await ended.wait()
        server.close()
        for each in list(connections):
            each.close()


async def run(settings: Settings, batcher: Batcher) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await serve(settings, batcher, ended)


def live(settings: Settings, shelf: ModelCache, batcher: Batcher, ended: threading.Event) -> None:
    """Say that we are here while the database lets us, and take the newest model from disk before anybody asks."""
    engine = connect(settings)
    row = heartbeat.Heartbeat(engine, "inference", shelf.device, heartbeat.unique_name())
    models, seen, told = Storage(settings.data_dir).root / "models", 0, float("-inf")
    while not ended.is_set():
        with contextlib.suppress(OSError):  # of a file system on the network
            changed = models.stat().st_mtime_ns
            if changed != seen:  # a model was published or deleted
                seen = changed
                batcher.warm()
        if time.monotonic() - told >= settings.worker_heartbeat_s:
            told = time.monotonic()
            row.beat()
        ended.wait(LOOK_S)
    row.end()
    engine.dispose()


def run_process(settings: Settings, shelf: ModelCache) -> None:
    """Answer with the models of `shelf` until told to end."""
    batcher = Batcher(settings, shelf)
    ended = threading.Event()
    # What was imported stays: searching it for garbage would hold up answers. New objects are searched less often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    alive = threading.Thread(target=live, args=(settings, shelf, batcher, ended), name="presence", daemon=True)
    batcher.start()
    alive.start()
    try:
        uvloop.run(run(settings, batcher))
    finally:
        ended.set()
        batcher.end()
        alive.join(settings.connect_timeout_s * 2)


def main() -> None:
    settings = current()
    logs.configure(settings.log_level, process="inference")
    files = Storage(settings.data_dir)
    files.create()
    threads = settings.threads or os.cpu_count() or 1
    run_process(settings, ModelCache(files, heartbeat.detect_device(settings), settings.models_in_memory, threads))
