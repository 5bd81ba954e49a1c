"""A route for many small requests: it goes around the framework, and works out a query string once, not every time.

It knows neither images nor models. Who may is asked every time, as on every route; errors are the guard's business, as
everywhere.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.routing import Route

REMEMBERED = 256
KEY_BYTES = 512  # what is longer is parsed anew


class Lane(Route):
    """Its endpoint takes request, settings and what the query asks for, and gives the last to `remember`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: dict[tuple[bytes, str | None], Any] = {}

    def remember(self, request: Request, asked: Any) -> None:
        key = _key(request)
        if key not in self._seen and len(key[0]) + len(key[1] or "") <= KEY_BYTES:
            if len(self._seen) >= REMEMBERED:
                self._seen.clear()
            self._seen[key] = asked

    def beside(self, app: FastAPI, stack: ASGIApp) -> ASGIApp:
        """`stack`, the layers of `app`, for everything but this route's requests whose query is remembered."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == self.path and scope["method"] in (self.methods or ()):
                request = Request(scope, receive, send)
                asked = self._seen.get(_key(request))
                if asked is not None:
                    scope["app"], scope["route"] = app, self
                    await self.allow.check(request)
                    response = await self.endpoint(request, app.state.settings, asked)
                    await response(scope, receive, send)
                    return
            await stack(scope, receive, send)

        return serve


def _key(request: Request) -> tuple[bytes, str | None]:
    """All that `Options` are made of."""
    return request.scope["query_string"], request.headers.get("accept")
