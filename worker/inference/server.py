"""The inference process: frames in, micro-batches through `ml.serving.predictor`, frames out.

Predictions need neither database nor Redis. A client can neither end the process nor harm another client: a bad frame
closes its connection, a bad image has an error as its result. `worker.inference.batcher` builds the batches.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import uvloop

from app import logs
from app.db.session import connect
from app.errors import StorageUnavailable, sentence
from app.predictions import frames
from app.predictions.handshake import GREETING_BYTES, ServerHandshake
from app.settings import Settings, current
from app.shared_storage import SharedStorage, open_storage
from app.storage import Storage
from ml.training import host_cpus
from worker import heartbeat, host_devices
from worker.inference import prefork
from worker.inference.batcher import Batcher, Refused, Reply, Request, unavailable
from worker.inference.model_cache import ModelCache
from worker.inference.unfinished_frames import UnfinishedFrames

log = logging.getLogger(__name__)

POLL_S = 0.5  # how often the folder of models is checked
SHARED_POLL_S = 3.0  # how often an object store is asked for its models
OUTBOX_BYTES = 64 * 1024 * 1024  # a client that does not read its replies is disconnected
FAULT_S = 60.0  # a process whose device cannot be used ends after this, and its successor looks again
GRACE_S = 6.0  # for the serving process to end after SIGTERM
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
                if self._batcher.fault is not None:  # also of a request that could not be read: the health check's
                    raise unavailable(sentence(self._batcher.fault))
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


async def serve(settings: Settings, batcher: Batcher, listeners: Sequence[socket.socket], ended: asyncio.Event) -> None:
    """Accept clients until `ended` is set, and pass their requests to the batcher."""
    loop = asyncio.get_running_loop()
    connections: set[ClientConnection] = set()
    most_bytes = settings.unfinished_frame_bytes
    unfinished = UnfinishedFrames(most_bytes, settings.unfinished_frame_s)
    address = frames.parse_address(settings.inference_listen)
    secret = settings.inference_secret_bytes if address.path is None else None

    def connect_client() -> ClientConnection:
        handshake = ServerHandshake(secret) if secret is not None else None
        handshake_s = settings.connect_timeout_s
        return ClientConnection(batcher, connections, unfinished, most_bytes, handshake, handshake_s)

    async with contextlib.AsyncExitStack() as stack:
        for listener in listeners:
            is_local = listener.family == socket.AF_UNIX
            create = loop.create_unix_server if is_local else loop.create_server
            await stack.enter_async_context(await create(connect_client, sock=listener))
        await ended.wait()
        stack.push_async_callback(close_all, connections)


async def close_all(connections: set[ClientConnection]) -> None:
    for connection in list(connections):
        connection.close()


class PublishedModels:
    """Notices when a model is published or deleted, and fetches the newest one to this host.

    Args:
        files: Where models are.
    """

    def __init__(self, files: Storage) -> None:
        self._files = files
        self._seen: object = None
        self._look_at = float("-inf")

    def have_changed(self) -> bool:
        """Whether models came or went since the last call; False while nobody can tell."""
        if time.monotonic() < self._look_at:
            return False
        try:
            seen: object
            if isinstance(self._files, SharedStorage):
                self._look_at = time.monotonic() + SHARED_POLL_S
                models = self._files.models()
                seen = frozenset(models.items())
                if seen != self._seen and models:  # before the model's thread waits for it
                    self._files.fetch(self._files.model(max(models, key=lambda one: models[one])))
            else:
                # The folder's modification time changes when a model is published or deleted.
                seen = (self._files.root / "models").stat().st_mtime_ns
        except (OSError, StorageUnavailable):
            return False
        has_changed, self._seen = seen != self._seen, seen
        return has_changed


def watch_models(settings: Settings, device: str, batcher: Batcher, ended: threading.Event) -> None:
    """Write the heartbeat, and have the newest model loaded whenever one was published, until `ended` is set.

    A process whose device cannot be used ends itself, since CUDA does not recover within a process: at once where the
    device worked before.

    Args:
        settings: Database, data folder and period of the heartbeat.
        device: What the models run on, for the heartbeat's row.
        batcher: Loads the model in its own thread.
        ended: Set by the process when it ends.
    """
    engine = connect(settings, "inference")
    row = heartbeat.Heartbeat(engine, "inference", device, heartbeat.unique_name())
    files = open_storage(settings)
    models = PublishedModels(files)
    last_beat = float("-inf")
    end_at = time.monotonic() + (FAULT_S if batcher.fault else 0.0)
    while not ended.is_set():
        if models.have_changed():
            batcher.preload()
        if time.monotonic() - last_beat >= settings.worker_heartbeat_s:
            last_beat = time.monotonic()
            row.beat(fault=batcher.fault)
            files.sweep(settings.orphan_files_s, settings.upload_expires_s)
        if batcher.fault is not None and time.monotonic() >= end_at:
            os.kill(os.getpid(), signal.SIGTERM)
        ended.wait(POLL_S)
    row.end()
    engine.dispose()


async def run(settings: Settings, batcher: Batcher, listeners: Sequence[socket.socket], manager: int) -> None:
    """Serve until SIGTERM or SIGINT, or until the successor of a parent that was killed has taken over."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in prefork.END_SIGNALS:
        loop.add_signal_handler(number, ended.set)
    if settings.inference_takeover_s:
        prefork.outlive_parent(loop, os.getppid(), manager, settings.inference_takeover_s, ended.set)
    await serve(settings, batcher, listeners, ended)


def serve_models(settings: Settings, models: ModelCache, listeners: Sequence[socket.socket], manager: int) -> None:
    """The forked process: load the newest model, then serve until it is told to end.

    Args:
        settings: Limits and data folder.
        models: Where models come from.
        listeners: Sockets that listen.
        manager: Pid of the process that started the parent.
    """
    gc.enable()
    gc.set_threshold(20_000, 20, 20)  # objects are searched less often
    with contextlib.suppress(OSError, StorageUnavailable):  # a request for a model will report it
        models.load_newest()
    batcher = Batcher(settings, models)
    ended = threading.Event()
    watcher = threading.Thread(
        target=watch_models, args=(settings, models.device, batcher, ended), name="heartbeat", daemon=True
    )
    batcher.start()
    watcher.start()
    try:
        uvloop.run(run(settings, batcher, listeners, manager))
    finally:
        ended.set()
        batcher.end()
        watcher.join(settings.connect_timeout_s * 2)


def run_process(settings: Settings, open_models: Callable[[], ModelCache]) -> None:
    """Listen, and keep one forked process serving, until SIGTERM or SIGINT.

    Args:
        settings: Address and limits.
        open_models: Called in each forked process.
    """
    manager = os.getppid()
    prefork.hold_signals()
    listeners = prefork.listen(frames.parse_address(settings.inference_listen))
    log.info("listening at %s", settings.inference_listen)
    gc.collect()
    gc.freeze()  # searching what was imported would delay replies, and copy every page of it
    prefork.keep_serving(lambda: serve_models(settings, open_models(), listeners, manager), GRACE_S)


def main() -> None:
    settings = current()
    logs.configure(settings.log_level, process="inference")
    files = open_storage(settings)
    files.create()
    device, threads = host_devices.names(settings)[0], settings.threads or host_cpus.count()
    fraction = settings.gpu_memory_fraction
    run_process(
        settings,
        lambda: ModelCache(files, device, settings.models_in_memory, threads, gpu_memory_fraction=fraction),
    )
