"""The route classes of the API: they authorise before they read a body, parse strictly and add an ETag.

FastAPI would read a JSON body before it runs dependencies, also that of an unauthorised caller.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Fault, InvalidRequest, PreconditionFailed
from app.http import bodies, json_text, problems
from app.http.access import RequireScope
from ml.formats.errors import printable

QUERIES_CACHED = 256
CACHED_QUERY_BYTES = 512  # a longer query string is parsed every time


class Route(APIRoute):
    """A route that declares its scope, refuses unknown query parameters, and honours `If-None-Match`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        scopes = [d.dependency for d in self.dependencies if isinstance(d.dependency, RequireScope)]
        if len(scopes) != 1:
            raise TypeError(f"{self.path} must declare one scope: dependencies=[READ], [TRAIN], ...")
        self.required_scope: RequireScope = scopes[0]
        self.query_names = frozenset(query_names(self.dependant))

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_checked(request: Request) -> Response:
            await self.required_scope.check(request)
            self.check_query(request.query_params)
            if self.body_field is not None:
                value = await bodies.strict_json(request)
                request._json = value
            response = await handle(request)
            return conditional(request, response) if request.method == "GET" else response

        return handle_checked

    def check_query(self, parameters: QueryParams) -> None:
        """Refuse query parameters that this route does not have, and values with NUL characters; InvalidRequest."""
        unknown = [name for name in parameters if name not in self.query_names]
        faults = [
            Fault(
                problems.pointer(("query", name)),
                "unknown_parameter",
                f"There is no query parameter {printable(name)!r} here."
                + (problems.did_you_mean(name, self.query_names) if n < problems.FAULTS_LISTED else ""),
            )
            for n, name in enumerate(unknown)
        ]
        faults += [
            Fault(problems.pointer(("query", name)), "text", "NUL characters are not text.")
            for name, value in parameters.multi_items()
            if not json_text.is_text(value)
        ]
        if faults:
            raise InvalidRequest(problems.summary(faults), errors=faults)


class AnyQueryRoute(Route):
    """A route whose query is not for the server but for the page that it answers with."""

    def check_query(self, parameters: QueryParams) -> None:
        """Nothing is refused, as nothing is read."""


class CachedQueryRoute(Route):
    """A route for many small requests: its endpoint takes the request and one model of the query, nothing else.

    FastAPI's own handler validates the query and resolves dependencies anew for every request, which costs more than
    all else that the API does for a prediction. This one (docs/decisions/0007) validates each distinct query string
    once and calls the endpoint itself. Keys are checked every time; the OpenAPI document follows from the endpoint's
    signature, as everywhere.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        model: type[BaseModel] = self.dependant.query_params[0].field_info.annotation  # type: ignore[assignment]

        def parse_query(query_string: bytes) -> BaseModel:
            parameters = QueryParams(query_string)
            self.check_query(parameters)
            try:
                return model.model_validate(dict(parameters))
            except ValidationError as error:
                raise problems.of_query(error) from None

        parse_cached = functools.lru_cache(QUERIES_CACHED)(parse_query)

        async def handle(request: Request) -> Response:
            await self.required_scope.check(request)
            query_string: bytes = request.scope["query_string"]
            parse = parse_cached if len(query_string) <= CACHED_QUERY_BYTES else parse_query
            response: Response = await self.endpoint(request, parse(query_string))
            return response

        return handle


def query_names(dependant: Dependant) -> set[str]:
    """Query parameters of a route and of all it depends on."""
    names: set[str] = set()
    for field in dependant.query_params:
        kind = field.field_info.annotation
        is_model = isinstance(kind, type) and issubclass(kind, BaseModel)
        names |= set(kind.model_fields) if is_model else {field.alias}  # type: ignore[union-attr]
    return names.union(*(query_names(inner) for inner in dependant.dependencies))


class Router(APIRouter):
    """A router whose routes are `Route`s."""

    def __init__(self, **named: Any) -> None:
        super().__init__(route_class=Route, **named)


def conditional(request: Request, response: Response) -> Response:
    """Add an ETag of the content to a complete 200 response, or return 304 to a client that has this content."""
    body = getattr(response, "body", None)
    if response.status_code != 200 or not isinstance(body, bytes):
        return response
    if "etag" not in response.headers:
        response.headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    response.headers.setdefault("Cache-Control", "private, no-cache")
    if matches(request.headers.get("if-none-match"), response.headers["etag"]):
        headers = {k: v for k, v in response.headers.items() if k in {"etag", "cache-control", "vary"}}
        return Response(status_code=304, headers=headers, background=response.background)
    return response


def matches(condition: str | None, etag: str) -> bool:
    """Whether an If-Match or If-None-Match header names this ETag, by weak comparison (RFC 9110 §13.1)."""
    if not condition:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition[:4096].split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags


def require_number(if_match: str | None, number: int, what: str) -> None:
    """Raise PreconditionFailed unless an If-Match header, where there is one, names this number, quoted or not.

    Args:
        if_match: The header; None asks for nothing.
        number: That the client must know.
        what: It is the number of, as in "The newest version is 3."
    """
    if if_match is not None and not any(matches(if_match, etag) for etag in (f'"{number}"', str(number))):
        raise PreconditionFailed(f"{what} is {number}.")


class AllowedMethods:
    """The methods of each path over all routers, for the Allow header: the framework's covers a single route."""

    def __init__(self, routers: Iterable[APIRouter]) -> None:
        self._routes = [r for router in routers for r in router.routes if isinstance(r, APIRoute)]

    def of(self, path: str) -> list[str]:
        methods = {m for route in self._routes if route.path_regex.match(path) for m in route.methods or ()}
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))
