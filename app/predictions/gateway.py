"""The API's end of the wire: one connection an inference process, many frames under way on it, each with a deadline.

It knows frames and addresses, not images. Predictions are pure, so a frame lost with its connection is sent once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Sequence
from typing import Any

from app.errors import (
    DeadlineExceeded,
    InferenceAway,
    ModelUnavailable,
    Overloaded,
    Problem,
    TooLarge,
    UndecodableInput,
)
from app.predictions import wire
from app.predictions.wire import Address, Frame

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


class Connection:
    """One address: connected when first needed, and again after a failure."""

    def __init__(self, address: Address, connect_timeout_s: float) -> None:
        self.address = address
        self._connect_timeout_s = connect_timeout_s
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
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
            writer = await self._connected()
            writer.writelines(wire.encode(header, parts))
            await writer.drain()
            return await reply
        finally:
            self._waiting.pop(header["id"], None)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                try:
                    async with asyncio.timeout(self._connect_timeout_s):
                        reader, self._writer = await self._open()
                except (OSError, TimeoutError) as error:
                    self._rest_until = asyncio.get_running_loop().time() + REST_S
                    raise ConnectionError(f"no inference process at {self.address}") from error
                self._reading = asyncio.create_task(self._read(reader))
            return self._writer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.address.path is not None:
            return await asyncio.open_unix_connection(self.address.path, limit=wire.HEADER_BYTES)
        return await asyncio.open_connection(self.address.host, self.address.port, limit=wire.HEADER_BYTES)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await wire.read(reader)) is not None:
                reply = self._waiting.get(str(frame.header.get("id")))
                if reply is not None and not reply.done():
                    reply.set_result(frame)
        except OSError as error:
            log.warning("inference connection lost: %s", error)
        finally:
            self._lose()

    def _lose(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionError("the inference process went away"))

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        self._lose()


class Gateway:
    """All inference processes, as one that answers."""

    def __init__(self, addresses: str, *, connect_timeout_s: float, deadline_s: float, most_in_flight: int) -> None:
        given = [wire.parse(address) for address in addresses.split(",") if address.strip()]
        self._connections = [Connection(address, connect_timeout_s) for address in given]
        self._deadline_s, self._most = deadline_s, most_in_flight
        self._ids = itertools.count(1)

    async def ask(self, header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
        """The reply to one request frame.

        Overloaded (429), InferenceAway or ModelUnavailable (503), DeadlineExceeded (504), or what the reply says.
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
        raise InferenceAway("No inference process answers; it may be starting.", retry_after_s=RETRY_S)

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


def refusal(error: dict[str, Any]) -> Problem:
    """A reply's error as a problem; a status that is none of ours counts as the model being unavailable."""
    status = int(error.get("status", 503))
    kind = PROBLEMS.get(status, ModelUnavailable)
    retry_after_s = int(error.get("retry_after_s") or RETRY_S) if status not in {413, 422} else None
    return kind(str(error.get("detail", "")), code=error.get("code"), status=kind.status, retry_after_s=retry_after_s)
