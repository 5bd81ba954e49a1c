"""Limits on request bodies: their size (H1), their speed (H3), and JSON off the event loop.

Every body has the limit of JSON until its route raises it with `allow`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from app.errors import BodyTooSlow, TooLarge, UnsupportedMediaType
from app.http import json_text
from app.settings import MIB, Settings

SCOPE_KEY = "denll.body"
ARRIVED_KEY = "denll.body_arrived"  # set by the connection when nothing of the body is awaited any more
DISPLACED_RETRY_S = 10


class CountedBody:
    """The ASGI `receive` of one request, which enforces a size limit in bytes and a minimum speed.

    Args:
        receive: The server's `receive`.
        settings: The limits.
        arrived: Whether the server has the complete body already, so that its speed need not be measured.
    """

    def __init__(self, receive: Receive, settings: Settings, *, arrived: bool) -> None:
        self.limit = settings.json_bytes
        self._arrived = arrived
        self._receive = receive
        self._slow_s, self._slow_bytes = settings.slow_body_s, settings.slow_body_bytes
        self._total = self._window_bytes = 0
        self._window_start: float | None = None
        self._complete = False
        # Recent bytes, and the seconds for which they were awaited: older ones count less.
        self._memory_s = settings.contended_grace_s
        self._recent_bytes = self._recent_s = 0.0
        self._awaited_since: float | None = None
        self._timeout: asyncio.Timeout | None = None  # of the message that is awaited
        self._displaced: BodyTooSlow | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # waits until the client disconnects, which may take hours
        if self._displaced is not None:
            raise self._displaced
        message = await (self._receive() if self._arrived else self._in_time())
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._total += size
            self._window_bytes += size
            self._complete = not message.get("more_body", False)
            if self._total > self.limit:
                raise too_large(self.limit)
        return message

    async def _in_time(self) -> Message:
        clock = asyncio.get_running_loop().time
        while True:
            if self._window_start is None or clock() - self._window_start >= self._slow_s:
                if self._window_start is not None and self._window_bytes < self._slow_bytes:
                    raise self._too_slow()
                self._window_start, self._window_bytes = clock(), 0
            with contextlib.suppress(TimeoutError):
                return await self._receive_until(self._window_start + self._slow_s)
            if self._displaced is not None:
                raise self._displaced

    async def _receive_until(self, deadline: float) -> Message:
        """The next message, its bytes and the time until it came counted; TimeoutError."""
        clock = asyncio.get_running_loop().time
        self._awaited_since = clock()
        try:
            async with asyncio.timeout_at(deadline) as self._timeout:
                message = await self._receive()
        finally:
            self._decay(clock() - self._awaited_since)
            self._awaited_since = self._timeout = None
        self._recent_bytes += len(message.get("body", b""))
        return message

    def _decay(self, waited_s: float) -> None:
        """Count seconds of waiting, and all that was before them less."""
        left = math.exp(-waited_s / self._memory_s)
        self._recent_bytes *= left
        self._recent_s = self._recent_s * left + waited_s

    def bytes_per_s(self) -> float:
        """How fast the client has sent lately, in the time in which it was waited for; infinite once all is here."""
        if self._complete:
            return math.inf
        if self._awaited_since is not None:
            now = asyncio.get_running_loop().time()
            self._decay(now - self._awaited_since)
            self._awaited_since = now
        return self._recent_bytes / self._recent_s if self._recent_s else math.inf

    def displace(self, least_bytes_per_s: int) -> None:
        """Refuse the rest of the body, as others that wait would send faster than `least_bytes_per_s`."""
        self._displaced = BodyTooSlow(
            f"The body arrived slower than {least_bytes_per_s} bytes a second while others waited.",
            headers={"Connection": "close"},
            retry_after_s=DISPLACED_RETRY_S,
        )
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(0.0)

    def _too_slow(self) -> BodyTooSlow:
        return BodyTooSlow(
            f"The body arrived slower than {self._slow_bytes} bytes in {self._slow_s:g} s.",
            headers={"Connection": "close"},
        )


def too_large(limit: int) -> TooLarge:
    """The problem of a body with more than `limit` bytes."""
    size = f"{limit // MIB} MiB" if limit >= MIB else f"{limit} bytes"
    return TooLarge(f"The body is larger than {size}.")


def allow(scope: Scope, limit: int) -> None:
    """Set the size limit of this request's body in bytes; TooLarge at once when its Content-Length is above it."""
    scope[SCOPE_KEY].limit = limit
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)


def media_type(request: Request) -> str:
    """The Content-Type in lower case without parameters, "" when there is none."""
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


async def strict_json(request: Request) -> Any:
    """The body as JSON, or None when it is empty; Malformed, InvalidRequest, UnsupportedMediaType or TooLarge."""
    allow(request.scope, request.scope[SCOPE_KEY].limit)
    data = await request.body()
    kind = media_type(request)
    if not data and kind in {"", "application/json"}:
        return None
    if kind != "application/json":
        raise UnsupportedMediaType("Send the body as Content-Type: application/json.")
    return await run_in_threadpool(json_text.parse, data)
