"""The inference process: frames in, micro-batches through `ml.serving.predictor`, frames out.

It needs neither database nor broker. A client can neither end it nor harm another client: a bad frame costs its
connection, a bad image its own result. Batches are built in `worker.inference.batcher`.
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

from app import logs, storage
from app.db.session import connect
from app.predictions import frames
from app.predictions.handshake import GREETING_BYTES, ServerHandshake
from app.settings import Settings, current
from app.storage import Storage
from worker import heartbeat
from worker.inference.batcher import Batcher, Refused, Reply, Request
from worker.inference.model_cache import ModelCache
from worker.inference.unfinished_frames import UnfinishedFrames

log = logging.getLogger(__name__)

POLL_S = 0.5  # how often the folder of models is checked
OUTBOX_BYTES = 64 * 1024 * 1024  # a client that does not read its replies is disconnected
OPTIONS = {"top_k", "threshold", "masks", "mask_threshold", "render"}


class ClientConnection(frames.FrameProtocol):
    """One client. Replies leave in the order in which they are ready, all that are ready in one write.

    Args:
        batcher: Takes the requests.
        connections: All open connections, kept up to date by each.
        unfinished: The unfinished frames of all connections.
        most_bytes: Of the images of a request.
        handshake: What the client has to pass first; None on a Unix socket, whose file mode says who may connect.
        handshake_s: How long that may take.
    """

    def __init__(
        self,
        batcher: Batcher,
        connections: set[ClientConnection],
        unfinished: UnfinishedFrames,
        most_bytes: int,
        handshake: ServerHandshake | None,
        handshake_s: float,
    ) -> None:
        super().__init__(most_bytes)
        self._handshake, self._handshake_s = handshake, handshake_s
        self._batcher = batcher
        self._unfinished = unfinished
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[list[bytes]] = deque()  # filled by the model's and the pool's threads
        self._writing = threading.Lock()  # held from the first reply of a write until it is written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.add(self)
        if self._handshake is not None:
            self._transport.writelines(frames.encode(self._handshake.challenge()))
            self._loop.call_later(self._handshake_s, self._end_handshake)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.discard(self)
        self._unfinished.discard(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._handshake is not None and self._parser.unfinished_bytes > GREETING_BYTES:
            self.abort()
            return
        self._unfinished.update(self, self._parser.completed, self._parser.unfinished_bytes)

    def _end_handshake(self) -> None:
        if self._handshake is not None:
            self.abort()

    def _authenticate(self, handshake: ServerHandshake, frame: frames.Frame) -> None:
        try:
            self._transport.writelines(frames.encode(handshake.answer(frame.header)))
            self._handshake = None
        except frames.BadFrame as error:
            log.warning("connection refused: %s", error)
            self.abort()

    def abort(self) -> None:
        """End the connection at once."""
        self._transport.abort()

    def frames_received(self, received: list[frames.Frame]) -> None:
        requests = []
        for frame in received:
            if self._handshake is not None:
                self._authenticate(self._handshake, frame)
                if self._handshake is not None:
                    return
                continue
            try:
                requests.append(parse_request(frame, self.reply))
            except Refused as refused:
                self.reply({"id": frame.header.get("id"), "error": refused.error}, ())
        if requests:
            self._batcher.submit(requests)

    def reply(self, header: dict[str, Any], parts: Sequence[bytes]) -> None:
        """Queue a reply; safe in any thread. The first one wakes the event loop, the next ones join its write."""
        self._outbox.append(frames.encode(header, parts))
        if self._writing.acquire(blocking=False):
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the connection
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


def parse_request(frame: frames.Frame, reply: Reply) -> Request:
    """The request in a frame, its fields checked.

    Args:
        frame: Its header has `id`, `model`, `deadline_s` and options; its parts are encoded images.
        reply: Called with the header and the parts of the reply.

    Raises:
        Refused: A field is missing or has the wrong type, or there is no image.
    """
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


async def serve(settings: Settings, batcher: Batcher, ended: asyncio.Event) -> None:
    """Listen until `ended` is set, and pass requests to the batcher; a socket file of a dead process is replaced."""
    address = frames.parse_address(settings.inference_listen)
    loop = asyncio.get_running_loop()
    connections: set[ClientConnection] = set()
    most_bytes = settings.unfinished_frame_bytes
    unfinished = UnfinishedFrames(most_bytes, settings.unfinished_frame_s)
    secret = settings.inference_secret_bytes if address.path is None else None

    def connect_client() -> ClientConnection:
        handshake = ServerHandshake(secret) if secret is not None else None
        handshake_s = settings.connect_timeout_s
        return ClientConnection(batcher, connections, unfinished, most_bytes, handshake, handshake_s)

    if address.path is not None:
        with contextlib.suppress(FileNotFoundError):
            Path(address.path).unlink()  # noqa: ASYNC240 - before anybody is served
        server = await loop.create_unix_server(connect_client, address.path)
        Path(address.path).chmod(0o600)  # noqa: ASYNC240
    else:
        server = await loop.create_server(connect_client, address.host, address.port)
    log.info("listening at %s", settings.inference_listen)
    async with server:
        await ended.wait()
        server.close()
        for connection in list(connections):
            connection.close()


async def run(settings: Settings, batcher: Batcher) -> None:
    """Serve until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await serve(settings, batcher, ended)


def watch_models(settings: Settings, device: str, batcher: Batcher, ended: threading.Event) -> None:
    """Write the heartbeat, and have the newest model loaded whenever one was published, until `ended` is set.

    Args:
        settings: Database, data folder and period of the heartbeat.
        device: What the models run on, for the heartbeat's row.
        batcher: Loads the model in its own thread.
        ended: Set by the process when it ends.
    """
    engine = connect(settings)
    row = heartbeat.Heartbeat(engine, "inference", device, heartbeat.unique_name())
    models = Storage(settings.data_dir).root / "models"
    modified_ns, last_beat = 0, float("-inf")
    while not ended.is_set():
        # The folder's modification time changes when a model is published or deleted.
        with contextlib.suppress(OSError):  # of a network file system
            now_ns = models.stat().st_mtime_ns
            if now_ns != modified_ns:
                modified_ns = now_ns
                batcher.preload()
        if time.monotonic() - last_beat >= settings.worker_heartbeat_s:
            last_beat = time.monotonic()
            row.beat()
        ended.wait(POLL_S)
    row.end()
    engine.dispose()


def run_process(settings: Settings, models: ModelCache) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: Address and limits.
        models: Where models come from.
    """
    batcher = Batcher(settings, models)
    ended = threading.Event()
    # What was imported stays: searching it for garbage would delay replies. New objects are searched less often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    watcher = threading.Thread(
        target=watch_models, args=(settings, models.device, batcher, ended), name="heartbeat", daemon=True
    )
    batcher.start()
    watcher.start()
    try:
        uvloop.run(run(settings, batcher))
    finally:
        ended.set()
        batcher.end()
        watcher.join(settings.connect_timeout_s * 2)


def main() -> None:
    settings = current()
    storage.keep_private()
    logs.configure(settings.log_level, process="inference")
    files = Storage(settings.data_dir)
    files.create()
    threads = settings.threads or os.cpu_count() or 1
    run_process(settings, ModelCache(files, heartbeat.detect_device(settings), settings.models_in_memory, threads))
