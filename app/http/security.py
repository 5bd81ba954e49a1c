"""The door, as plain ASGI around everything: request id, host and origin, body limits, HEAD, last resort for errors.

It authorises nothing: who may do what is decided on the routed path (SEC7), never on a URL.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.errors import CrossSite, HostNotAllowed, Malformed, Problem, UnsupportedMediaType
from app.http import bodies, problems
from app.http.metrics import RequestMetrics
from app.settings import Settings, is_loopback

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
# What a page of another site can send without asking first; multipart is one too, there the Origin decides.
SIMPLE_TYPES = frozenset({"text/plain", "application/x-www-form-urlencoded"})

ON_EVERY_ANSWER = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)
OURS = {b"x-request-id", *(name for name, _ in ON_EVERY_ANSWER)}  # whatever a route says of these


class SecurityMiddleware:
    def __init__(self, app: ASGIApp, *, settings: Settings, meter: RequestMetrics) -> None:
        self._app, self._settings, self._meter = app, settings, meter
        named = (name.strip().lower() for name in settings.allowed_hosts.split(","))
        self._hosts = {"localhost", settings.host.lower(), *(name for name in named if name)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = Headers(scope=scope)
            given = headers.get("x-request-id", "")
            request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
            scope.setdefault("state", {})["request_id"] = request_id
            with logs.bound(request_id=request_id):
                await self._answer(scope, receive, send, headers)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        reply = Reply(scope, send)
        body = bodies.CountedBody(receive, self._settings, arrived=scope.get(bodies.ARRIVED_KEY, False))
        asked = scope["method"]
        # A copy: the server must go on seeing HEAD, or it would wait for the body that Content-Length announces.
        scope = {**scope, bodies.SCOPE_KEY: body, "asked_method": asked, "method": "GET" if asked == "HEAD" else asked}
        started = time.perf_counter()
        try:
            self._admit(scope["asked_method"], headers)
            await self._app(scope, reply.until_done(body.receive), reply.send)
        except ClientDisconnect:
            log.info("client went away")
        except Problem as problem:
            await self._refuse(scope, receive, reply, problem)
        except Exception:
            log.exception("bug")
            await self._refuse(scope, receive, reply, problems.bug())
        finally:
            self._account(scope, reply.status, time.perf_counter() - started)

    async def _refuse(self, scope: Scope, receive: Receive, reply: Reply, problem: Problem) -> None:
        if reply.status is None:
            await problems.respond(HTTPConnection(scope), problem)(scope, receive, reply.send)

    def _admit(self, method: str, headers: Headers) -> None:
        host = self._host(headers.getlist("host"))
        if "content-encoding" in headers:
            raise UnsupportedMediaType("Send the body without Content-Encoding.")
        if method in SAFE:
            return
        # No Origin: not a browser's cross-site request.
        if headers.get("sec-fetch-site") == "cross-site" or not all(
            same_origin(origin, host) for origin in headers.getlist("origin")
        ):
            raise CrossSite("The Origin of this request is another site.")
        kind = headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind in SIMPLE_TYPES:
            raise UnsupportedMediaType("Send application/json, multipart/form-data or a raw file.")

    def _host(self, given: list[str]) -> str:
        """The Host header, if it is one of ours: an IP address is (no name to rebind), a name only from the list."""
        if len(given) != 1 or not (match := HOST.fullmatch(given[0])):
            raise Malformed("The request needs exactly one valid Host header.")
        name = match[1].strip("[]").lower()
        if name not in self._hosts and "*" not in self._hosts and not is_address(name) and not is_loopback(name):
            raise HostNotAllowed("This service does not answer to that name; set DENLL_ALLOWED_HOSTS.")
        return given[0].lower()

    def _account(self, scope: Scope, status: int | None, seconds: float) -> None:
        method, route = scope["asked_method"], scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._meter.count(method, path, status or 0, seconds)
        changed = method not in SAFE and path != "/predict"
        level = logging.INFO if changed or (status or 0) >= 400 else logging.DEBUG
        if log.isEnabledFor(level):
            fields = {"method": method, "route": path, "status": status, "seconds": round(seconds, 4)}
            log.log(level, "request", extra={"fields": fields})


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def same_origin(origin: str, host: str) -> bool:
    """Whether the page that sent this came from us; what is no origin at all did not."""
    try:
        return urlsplit(origin).netloc.lower() == host
    except ValueError:
        return False


class Reply:
    """What goes back: headers every answer has, nothing but headers for HEAD."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        self._request_id = scope["state"]["request_id"]
        self._head = scope["method"] == "HEAD"
        self._done = False
        self._send = send

    async def send(self, message: Message) -> None:
        if self._done:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = [header for header in message["headers"] if header[0] not in OURS]
            message["headers"] = [*given, (b"x-request-id", self._request_id.encode("ascii")), *ON_EVERY_ANSWER]
            await self._send(message)
            if self._head:
                self._done = True
                await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send(message)

    def until_done(self, receive: Receive) -> Receive:
        """`receive` that reports a disconnect once a HEAD is answered, so that streams stop producing."""

        async def receive_or_end() -> Message:
            return {"type": "http.disconnect"} if self._done else await receive()

        return receive_or_end
