"""The client of the inference processes: one connection to each, many requests in flight on it, each with a deadline.

It knows frames and addresses, not images. A prediction changes nothing, so a request lost with its connection is sent
once more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from app.errors import (
    DeadlineExceeded,
    InferenceUnavailable,
    ModelUnavailable,
    Overloaded,
    Problem,
    TooLarge,
    UndecodableInput,
)
from app.predictions import frames
from app.predictions.frames import Address, Frame
from app.predictions.handshake import ClientHandshake

log = logging.getLogger(__name__)

RETRY_S = 2
BACKOFF_S = 0.5  # pause after an address refused a connection
PROBLEMS: dict[int, type[Problem]] = {
    413: TooLarge,
    422: UndecodableInput,
    429: Overloaded,
    503: ModelUnavailable,
    504: DeadlineExceeded,
}


class InferenceConnection(frames.FrameProtocol):
    """One open connection: completes the future of each reply, and fails all of them when it is lost.

    Args:
        waiting: The futures of the requests in flight, by their ids.
        secret: What both ends must know; None where nobody asks for it.
    """

    def __init__(self, waiting: dict[str, asyncio.Future[Frame]], secret: bytes | None = None) -> None:
        super().__init__()
        self.closed = False
        self.has_replied = False
        self._handshake = ClientHandshake(secret) if secret is not None else None
        self.authenticated: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if secret is None:
            self.authenticated.set_result(None)
        self._waiting = waiting
        self._writable = asyncio.Event()  # cleared while the transport's write buffer is full
        self._writable.set()
        self._outbox: list[bytes] = []

    async def send(self, buffers: Sequence[bytes]) -> None:
        """Write the buffers of one frame, and wait while the transport is full; ConnectionError once it is closed."""
        if self.closed:
            raise ConnectionError("the inference process closed the connection")
        if not self._outbox:  # requests of one iteration of the event loop are sent in one write
            asyncio.get_running_loop().call_soon(self._write)
        self._outbox += buffers
        if not self._writable.is_set():
            await self._writable.wait()

    def _write(self) -> None:
        if not self.closed:
            self._transport.writelines(self._outbox)
        self._outbox.clear()

    def frames_received(self, received: list[Frame]) -> None:
        self.has_replied = True
        for frame in received:
            if self._handshake is not None:
                self._continue_handshake(self._handshake, frame)
                continue
            if "challenge" in frame.header:
                log.error("the inference process asks for a secret: set DENLL_INFERENCE_SECRET")
            reply = self._waiting.get(str(frame.header.get("id")))
            if reply is not None and not reply.done():
                reply.set_result(frame)

    def _continue_handshake(self, handshake: ClientHandshake, frame: Frame) -> None:
        try:
            answer = handshake.answer(frame.header)
        except frames.BadFrame as error:
            log.error("connection to an inference process refused: %s", error)  # noqa: TRY400 - no bug of ours
            self._transport.abort()
            return
        if answer is not None:
            self._transport.writelines(frames.encode(answer))
        else:
            self._handshake = None
            if not self.authenticated.done():
                self.authenticated.set_result(None)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closed = True
        self._writable.set()
        self.authenticated.cancel()
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionError("the inference process closed the connection"))


class InferenceProcess:
    """One inference process: connected when first needed, and again after a failure.

    Args:
        address: Where it listens.
        connect_timeout_s: How long opening a connection may take.
        secret: What both ends must know if it listens on TCP; None where nobody asks for it.
    """

    def __init__(self, address: Address, connect_timeout_s: float, secret: bytes | None = None) -> None:
        self.address = address
        self._secret = secret if address.path is None else None
        self._connect_timeout_s = connect_timeout_s
        self._connection: InferenceConnection | None = None
        self._waiting: dict[str, asyncio.Future[Frame]] = {}
        self._connecting = asyncio.Lock()
        self._backoff_until = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def backs_off(self) -> bool:
        return asyncio.get_running_loop().time() < self._backoff_until

    @property
    def priority(self) -> tuple[bool, bool, int]:
        """Sorts processes: the least busy first; one that has not replied yet, as when it starts, gets one request."""
        has_replied = self._connection is not None and self._connection.has_replied and not self._connection.closed
        return self.backs_off, self.in_flight > 0 and not has_replied, self.in_flight

    async def send(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """Send a frame and await its reply; ConnectionError when no connection can be opened, or it is lost.

        Args:
            header: Header of the request, with an `id` that no other request in flight has.
            parts: The encoded images.
        """
        reply: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[header["id"]] = reply  # before connecting: `in_flight` steers a burst to other processes
        try:
            connection = self._connection
            if connection is None or connection.closed:
                connection = await self._connect()
            await connection.send(frames.encode(header, parts))
            return await reply
        finally:
            self._waiting.pop(header["id"], None)

    async def _connect(self) -> InferenceConnection:
        async with self._connecting:
            if self._connection is None or self._connection.closed:
                try:
                    async with asyncio.timeout(self._connect_timeout_s):
                        self._connection = await self._open()
                except (OSError, TimeoutError) as error:
                    self._backoff_until = asyncio.get_running_loop().time() + BACKOFF_S
                    raise ConnectionError(f"no inference process at {self.address}") from error
            return self._connection

    async def _open(self) -> InferenceConnection:
        loop, connection = asyncio.get_running_loop(), InferenceConnection(self._waiting, self._secret)
        if self.address.path is not None:
            await loop.create_unix_connection(lambda: connection, self.address.path)
        else:
            await loop.create_connection(lambda: connection, self.address.host or "", self.address.port)
        try:
            await asyncio.wait([connection.authenticated])
        except BaseException:
            connection.close()
            raise
        if connection.closed or connection.authenticated.cancelled():
            raise ConnectionError("the inference process closed the connection")
        return connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class Gateway:
    """Sends requests to the least busy of all inference processes.

    Args:
        addresses: Of the processes, comma-separated, each as in `frames.parse_address`.
        connect_timeout_s: How long opening a connection may take.
        deadline_s: How long a request may take.
        max_in_flight: The most requests that wait for a reply; more are refused.
        secret: What processes that listen on TCP must know; None where nobody asks for it.
    """

    def __init__(
        self,
        addresses: str,
        *,
        connect_timeout_s: float,
        deadline_s: float,
        max_in_flight: int,
        secret: bytes | None = None,
    ) -> None:
        parsed = [frames.parse_address(address) for address in addresses.split(",") if address.strip()]
        self._processes = [InferenceProcess(address, connect_timeout_s, secret) for address in parsed]
        self._deadline_s, self._max_in_flight = deadline_s, max_in_flight
        self._ids = itertools.count(1)

    async def send(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """Send a request, and return the reply.

        Args:
            header: As in `frames`, without `id` and `deadline_s`, which are added.
            parts: The encoded images.

        Raises:
            Overloaded: As many predictions as allowed are waiting.
            InferenceUnavailable, ModelUnavailable: No process replies, or it cannot load the model.
            DeadlineExceeded: There was no reply in time.
        """
        if sum(process.in_flight for process in self._processes) >= self._max_in_flight:
            raise Overloaded(f"{self._max_in_flight} predictions are already waiting.", retry_after_s=1)
        header = header | {"id": str(next(self._ids)), "deadline_s": self._deadline_s}
        try:
            async with asyncio.timeout(self._deadline_s):
                frame = await self._send_to_least_busy(header, parts)
        except TimeoutError:
            raise DeadlineExceeded(f"No reply within {self._deadline_s:g} s.", retry_after_s=RETRY_S) from None
        if (error := frame.header.get("error")) is not None:
            raise problem_of(error)
        return frame

    async def _send_to_least_busy(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """Try the least busy process first; another, or the same once more, when a connection breaks."""
        for _ in range(2):
            for process in sorted(self._processes, key=lambda p: p.priority):
                if process.backs_off:
                    continue
                try:
                    return await process.send(header, parts)
                except ConnectionError:
                    continue
        raise InferenceUnavailable("No inference process responds; it may be starting.", retry_after_s=RETRY_S)

    def close(self) -> None:
        for process in self._processes:
            process.close()


def problem_of(error: dict[str, Any]) -> Problem:
    """The error of a reply as a problem; ModelUnavailable for a status that is not in `PROBLEMS`."""
    status = int(error.get("status", 503))
    kind = PROBLEMS.get(status, ModelUnavailable)
    retry_after_s = int(error.get("retry_after_s") or RETRY_S) if status not in {413, 422} else None
    return kind(str(error.get("detail", "")), code=error.get("code"), status=kind.status, retry_after_s=retry_after_s)
