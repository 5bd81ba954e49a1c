"""The one kind of route: asks who may before it reads, parses strictly, refuses unknown parameters, tags answers.

FastAPI reads a JSON body before it runs dependencies; a stranger's body is not worth reading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Fault, InvalidRequest, shown
from app.http import bodies, problems
from app.http.access import Allow


class Route(APIRoute):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        allows = [d.dependency for d in self.dependencies if isinstance(d.dependency, Allow)]
        if len(allows) != 1:
            raise TypeError(f"{self.path} must say who may use it: dependencies=[READ], [TRAIN], ...")
        self.allow: Allow = allows[0]
        self.query_names = frozenset(query_names(self.dependant))

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await self.allow.check(request)
            self._check_query(request)
            if self.body_field is not None:
                value = await bodies.strict_json(request)
                request._json = value
            response = await answer(request)
            return conditional(request, response) if request.method == "GET" else response

        return guarded

    def _check_query(self, request: Request) -> None:
        unknown = [name for name in request.query_params if name not in self.query_names]
        faults = [
            Fault(
                problems.pointer(("query", name)),
                "unknown_parameter",
                f"There is no query parameter {shown(name)!r} here."
                + (problems.did_you_mean(name, self.query_names) if n < problems.FAULTS_SHOWN else ""),
            )
            for n, name in enumerate(unknown)
        ]
        faults += [
            Fault(problems.pointer(("query", name)), "text", "NUL characters are not text.")
            for name, value in request.query_params.multi_items()
            if not bodies.is_text(value)
        ]
        if faults:
            raise InvalidRequest(problems.summary(faults), errors=faults)


def query_names(dependant: Dependant) -> set[str]:
    """Query parameters of a route and of all it depends on."""
    names = {field.alias for field in dependant.query_params}
    return names.union(*(query_names(inner) for inner in dependant.dependencies))


class Router(APIRouter):
    def __init__(self, **named: Any) -> None:
        super().__init__(route_class=Route, **named)


def conditional(request: Request, response: Response) -> Response:
    """Tag a complete answer by its content, and shorten it to 304 for a client that has it."""
    body = getattr(response, "body", None)
    if response.status_code != 200 or not isinstance(body, bytes):
        return response
    if "etag" not in response.headers:
        response.headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    response.headers.setdefault("Cache-Control", "private, no-cache")
    if matches(request.headers.get("if-none-match"), response.headers["etag"]):
        kept = {k: v for k, v in response.headers.items() if k in {"etag", "cache-control", "vary"}}
        return Response(status_code=304, headers=kept, background=response.background)
    return response


def matches(if_none_match: str | None, etag: str) -> bool:
    """Weak comparison, as RFC 9110 §13.1.2 asks for."""
    if not if_none_match:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match[:4096].split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


class Paths:
    """Which methods each path has, over all routers: the framework's own Allow names one route's alone."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._routes = [r for router in routers for r in router.routes if isinstance(r, APIRoute)]

    def methods(self, path: str) -> list[str]:
        found = {m for route in self._routes if route.path_regex.match(path) for m in route.methods or ()}
        return sorted(found | ({"HEAD"} if "GET" in found else set()))
