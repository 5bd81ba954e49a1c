"""The HTTP protocol of the server, with limits on what a client may send before a request is complete.

uvicorn's parser reads request line and headers without a limit in bytes or time, and reports errors as plain text. This
subclass adds both limits and reports errors as problem documents. Limits on bodies are in `bodies`.
"""

from __future__ import annotations

import asyncio
import http
import json
import uuid
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import type_of
from app.http import bodies, problems
from app.settings import Settings


class BufferedTransport:
    """A transport that writes once per iteration of the event loop: one system call for head and body of a response."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting and not self._transport.is_closing():
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()

    def __getattr__(self, name: str) -> Any:
        """Everything else is delegated to the transport."""
        return getattr(self._transport, name)


class LimitedHttpProtocol(HttpToolsProtocol):
    """Its limits are class attributes, because uvicorn creates the instances; see `limited_protocol`."""

    head_bytes: ClassVar[int]
    head_s: ClassVar[float]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._in_head = True  # or between requests
        self._received = 0  # bytes of a head that is not complete yet; it counts whole chunks
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(BufferedTransport(transport, self.loop))  # type: ignore[arg-type]  # it delegates the rest
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._received += len(data)
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()  # also while the rest of a refused body is discarded
        super().data_received(data)
        if self._in_head and self._received > self.head_bytes and not self.transport.is_closing():
            self._refuse(431, "header_too_large", f"The request's headers have more than {self.head_bytes} bytes.")

    def on_message_complete(self) -> None:
        self._in_head, self._received = True, 0
        self.scope[bodies.ARRIVED_KEY] = True  # type: ignore[literal-required]  # ours
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed", "What was sent cannot be read as HTTP/1.1.")

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: int, code: str, detail: str) -> None:
        phrase = http.HTTPStatus(status).phrase
        document = {
            "type": type_of(code),
            "title": phrase,
            "status": status,
            "detail": detail,
            "request_id": uuid.uuid4().hex,
        }
        body = json.dumps(document).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {problems.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()


def limited_protocol(settings: Settings) -> type[LimitedHttpProtocol]:
    """The protocol class with the limits of these settings, for `uvicorn.run(http=...)`."""
    limits = {"head_bytes": settings.header_bytes, "head_s": settings.slow_header_s}
    return type("ConfiguredProtocol", (LimitedHttpProtocol,), limits)
