"""Limits on frames that arrive slowly: their bytes over all connections, and the time that each takes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)


class Connection(Protocol):
    """What can be cut off."""

    def abort(self) -> None:
        """End the connection at once."""


@dataclass
class UnfinishedFrame:
    """A frame of which a part has arrived.

    Attributes:
        number: How many frames of its connection were complete before it.
        bytes: How many have arrived.
        since: When the first one arrived, in the event loop's time.
    """

    number: int
    bytes: int
    since: float


class UnfinishedFrames:
    """The unfinished frames of all connections, one each; the oldest loses its connection when a limit is reached.

    A client that keeps sending completes its frame in an instant, so the oldest frame belongs to one that does not.

    Args:
        most_bytes: Of all of them together.
        most_s: How long one may take.
    """

    def __init__(self, most_bytes: int, most_s: float) -> None:
        self._most_bytes, self._most_s = most_bytes, most_s
        self._bytes = 0
        self._frames: dict[Connection, UnfinishedFrame] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def update(self, connection: Connection, number: int, size: int) -> None:
        """Note what a connection has received.

        Args:
            number: Its complete frames so far.
            size: Bytes of the frame after them; 0 where none has begun.
        """
        frame = self._frames.get(connection)
        if frame is not None and (frame.number != number or not size):
            self.discard(connection)
            frame = None
        if not size:
            return
        if frame is None:
            loop = asyncio.get_running_loop()
            frame = self._frames[connection] = UnfinishedFrame(number, 0, loop.time())
            if self._timer is None:
                self._timer = loop.call_later(self._most_s, self._cut_off_late)
        self._bytes += size - frame.bytes
        frame.bytes = size
        while self._bytes > self._most_bytes:
            self._cut_off(next(iter(self._frames)), "unfinished frames take too much memory")

    def discard(self, connection: Connection) -> None:
        """Forget the unfinished frame of a connection."""
        frame = self._frames.pop(connection, None)
        if frame is not None:
            self._bytes -= frame.bytes

    def _cut_off_late(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._frames:
            connection, frame = next(iter(self._frames.items()))
            due = frame.since + self._most_s
            if due > loop.time():
                self._timer = loop.call_at(due, self._cut_off_late)
                return
            self._cut_off(connection, "its frame took too long")

    def _cut_off(self, connection: Connection, reason: str) -> None:
        log.warning("connection closed: %s", reason)
        self.discard(connection)
        connection.abort()
