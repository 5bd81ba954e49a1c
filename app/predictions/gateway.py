"""The API's end of the wire: one connection an inference process, many frames under way on it, each with a deadline.

It knows frames and addresses, not images. Predictions are pure, so a frame lost with its connection is sent once more.
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

log = logging.getLogger(__name__)

RETRY_S = 2
REST_S = 0.5  # an address that refused a connection is left alone this long
PROBLEMS: dict[int, type[Problem]] = {
    413: TooLarge,
    422: UndecodableInput,
    429: Overloaded,
    503: ModelUnavailable,
    504: DeadlineExceeded,
}


class Line(frames.End):
    """One open connection: hands each reply to whoever waits for it, and tells all of them when it is gone."""

    def __init__(self, waiting: dict[str, asyncio.Future[Frame]]) -> None:
        super().__init__()
        self.closed = False
        self._waiting = waiting
        self._room = asyncio.Event()  # in the buffer of what is to be sent
        self._room.set()
        self._outbox: list[bytes] = []

    async def send(self, buffers: Sequence[bytes]) -> None:
        if self.closed:
            raise ConnectionError("the inference process went away")
        if not self._outbox:  # what else is asked in this turn of the loop goes in the same write
            asyncio.get_running_loop().call_soon(self._write)
        self._outbox += buffers
        if not self._room.is_set():
            await self._room.wait()

    def _write(self) -> None:
        if not self.closed:
            self._transport.writelines(self._outbox)
        self._outbox.clear()

    def frames_received(self, frames: list[Frame]) -> None:
        for frame in frames:
            reply = self._waiting.get(str(frame.header.get("id")))
            if reply is not None and not reply.done():
                reply.set_result(frame)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.closed = True
        self._room.set()
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionError("the inference process went away"))


class Connection:
    """One address: connected when first needed, and again after a failure."""

    def __init__(self, address: Address, connect_timeout_s: float) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._line: Line | None = None
        self._waiting: dict[str, asyncio.Future[Frame]] = {}
        self._connecting = asyncio.Lock()
        self._rest_until = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def resting(self) -> bool:
        return asyncio.get_running_loop().time() < self._rest_until

    async def ask(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """Send a frame and await its reply; ConnectionError when there is no connection, or no longer."""
        reply: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[header["id"]] = reply  # before connecting, or a burst would all choose this connection
        try:
            line = self._line
            if line is None or line.closed:
                line = await self._connected()
            await line.send(frames.encode(header, parts))
            return await reply
        finally:
            self._waiting.pop(header["id"], None)

    async def _connected(self) -> Line:
        async with self._connecting:
            if self._line is None or self._line.closed:
                try:
                    async with asyncio.timeout(self._connect_timeout_s):
                        self._line = await self._open()
                except (OSError, TimeoutError) as error:
                    self._rest_until = asyncio.get_running_loop().time() + REST_S
                    raise ConnectionError(f"no inference process at {self.address}") from error
            return self._line

    async def _open(self) -> Line:
        loop, line = asyncio.get_running_loop(), Line(self._waiting)
        if self.address.path is not None:
            await loop.create_unix_connection(lambda: line, self.address.path)
        else:
            await loop.create_connection(lambda: line, self.address.host or "", self.address.port)
        return line

    def close(self) -> None:
        if self._line is not None:
            self._line.close()


class Gateway:
    """All inference processes, as one that answers."""

    def __init__(self, addresses: str, *, connect_timeout_s: float, deadline_s: float, most_in_flight: int) -> None:
        given = [frames.parse(address) for address in addresses.split(",") if address.strip()]
        self._connections = [Connection(address, connect_timeout_s) for address in given]
        self._deadline_s, self._most = deadline_s, most_in_flight
        self._ids = itertools.count(1)

    async def ask(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """The reply to one request frame.

        Raises:
            Overloaded: As many predictions as allowed are waiting.
            InferenceUnavailable, ModelUnavailable: No process answers, or it cannot load the model.
            DeadlineExceeded: There was no reply in time.
        """
        if sum(c.in_flight for c in self._connections) >= self._most:
            raise Overloaded(f"{self._most} predictions are already waiting.", retry_after_s=1)
        header = header | {"id": str(next(self._ids)), "deadline_s": self._deadline_s}
        try:
            async with asyncio.timeout(self._deadline_s):
                frame = await self._first_that_answers(header, parts)
        except TimeoutError:
            raise DeadlineExceeded(f"No answer within {self._deadline_s:g} s.", retry_after_s=RETRY_S) from None
        if (error := frame.header.get("error")) is not None:
            raise refusal(error)
        return frame

    async def _first_that_answers(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """The least busy connection first; another, or the same anew, when it breaks."""
        for _ in range(2):
            for connection in sorted(self._connections, key=lambda c: (c.resting, c.in_flight)):
                if connection.resting:
                    continue
                try:
                    return await connection.ask(header, parts)
                except ConnectionError:
                    continue
        raise InferenceUnavailable("No inference process answers; it may be starting.", retry_after_s=RETRY_S)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def refusal(error: dict[str, Any]) -> Problem:
    """A reply's error as a problem; a status that is none of ours counts as the model being unavailable."""
    status = int(error.get("status", 503))
    kind = PROBLEMS.get(status, ModelUnavailable)
    retry_after_s = int(error.get("retry_after_s") or RETRY_S) if status not in {413, 422} else None
    return kind(str(error.get("detail", "")), code=error.get("code"), status=kind.status, retry_after_s=retry_after_s)
