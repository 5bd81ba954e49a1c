"""Security middleware around the application, as plain ASGI: request id, Host and Origin checks, body limits, HEAD, and
problem documents for errors that nothing else handles.

It does not authorise: scopes are checked by the matched route (SEC7), never by the URL.
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
from app.http.rate_limit import HEADERS_KEY
from app.setting_types import is_loopback
from app.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?")
# A browser sends these across sites without a preflight request. So it does multipart, for which the Origin is checked.
SIMPLE_TYPES = frozenset({"text/plain", "application/x-www-form-urlencoded"})

COMMON_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),
)
RESERVED_HEADERS = {b"x-request-id", *(name for name, _ in COMMON_HEADERS)}  # a route cannot set these


class SecurityMiddleware:
    """ASGI middleware; `settings` give the limits and the host names, `metrics` counts the requests."""

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: RequestMetrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        named = [name.strip().lower() for name in settings.allowed_hosts.split(",")]
        named.append(urlsplit(settings.public_url).hostname or "")
        self._hosts = {"localhost", settings.host.lower(), *(name for name in named if name)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = Headers(scope=scope)
            sent_id = headers.get("x-request-id", "")
            request_id = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
            scope.setdefault("state", {})["request_id"] = request_id
            with logs.bound(request_id=request_id):
                await self._handle(scope, receive, send, headers)
        else:
            await send({"type": "websocket.close", "code": 1003})

    async def _handle(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        writer = ResponseWriter(scope, send)
        body = bodies.CountedBody(receive, self._settings, arrived=scope.get(bodies.ARRIVED_KEY, False))
        method = scope["method"]
        # A copy: the server must go on seeing HEAD, or it would wait for the body that Content-Length announces.
        scope = {
            **scope,
            bodies.SCOPE_KEY: body,
            "original_method": method,
            "method": "GET" if method == "HEAD" else method,
        }
        started = time.perf_counter()
        try:
            self._check_request(scope["original_method"], headers)
            await self._app(scope, writer.until_done(body.receive), writer.send)
        except ClientDisconnect:
            log.info("client disconnected")
        except Problem as problem:
            await self._refuse(scope, receive, writer, problem)
        except Exception:
            log.exception("unexpected error")
            await self._refuse(scope, receive, writer, problems.internal_error())
        finally:
            self._record(scope, writer.status, time.perf_counter() - started)

    async def _refuse(self, scope: Scope, receive: Receive, writer: ResponseWriter, problem: Problem) -> None:
        if writer.status is None:
            await problems.respond(HTTPConnection(scope), problem)(scope, receive, writer.send)

    def _check_request(self, method: str, headers: Headers) -> None:
        host = self._host(headers.getlist("host"))
        if "content-encoding" in headers:
            raise UnsupportedMediaType("Send the body without Content-Encoding.")
        if method in SAFE:
            return
        # A request without an Origin header is not a cross-site request of a browser.
        if headers.get("sec-fetch-site") == "cross-site" or not all(
            same_origin(origin, host) for origin in headers.getlist("origin")
        ):
            raise CrossSite("The Origin of this request is another site.")
        kind = headers.get("content-type", "").split(";", 1)[0].strip().lower()
        if kind in SIMPLE_TYPES:
            raise UnsupportedMediaType(
                f"This is {kind}. Send JSON as application/json (curl: -H 'Content-Type: application/json'), "
                "a form as multipart/form-data, or a file under its own type."
            )

    def _host(self, values: list[str]) -> str:
        """The Host header, checked against DNS rebinding: any IP address is allowed, a name only from the list."""
        if len(values) != 1 or not (match := HOST.fullmatch(values[0])):
            raise Malformed("The request needs exactly one valid Host header.")
        name = match[1].strip("[]").lower()
        if name not in self._hosts and "*" not in self._hosts and not is_address(name) and not is_loopback(name):
            raise HostNotAllowed("This host name is not allowed; set DENLL_ALLOWED_HOSTS.")
        return values[0].lower()

    def _record(self, scope: Scope, status: int | None, seconds: float) -> None:
        method, route = scope["original_method"], scope.get("route")
        path = getattr(route, "path", None) or "other"
        self._metrics.count(method, path, status or 0, seconds)
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
    """Whether an Origin header names the host that the request was sent to; False for text that is no URL."""
    try:
        return urlsplit(origin).netloc.lower() == host
    except ValueError:
        return False


class ResponseWriter:
    """Sends a response: adds the headers of every response, and drops the body for HEAD."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.status: int | None = None
        self._state = scope["state"]
        self._head = scope["method"] == "HEAD"
        self._done = False
        self._send = send

    async def send(self, message: Message) -> None:
        if self._done:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [header for header in message["headers"] if header[0] not in RESERVED_HEADERS]
            own = (b"x-request-id", self._state["request_id"].encode("ascii"))
            message["headers"] = [*headers, own, *self._state.get(HEADERS_KEY, ()), *COMMON_HEADERS]
            await self._send(message)
            if self._head:
                self._done = True
                await self._send({"type": "http.response.body", "body": b""})
        else:
            await self._send(message)

    def until_done(self, receive: Receive) -> Receive:
        """A `receive` that reports a disconnect once the response to a HEAD is sent, so that streams end."""

        async def receive_or_end() -> Message:
            return {"type": "http.disconnect"} if self._done else await receive()

        return receive_or_end
