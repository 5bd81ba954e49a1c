"""The OpenAPI document: every operation lists the problems that it can respond with, in their own media type.

Problems that any route may respond with follow from what the route takes; a route names its own with `problems(...)`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from app.errors import Problem
from app.http import sessions
from app.http.problems import MEDIA_TYPE
from app.http.routing import Route
from app.settings import Settings

PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457: what went wrong, in a form programs can read.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "request_id"],
    "properties": {
        "type": {"type": "string", "examples": ["/problems/invalid-request"]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "request_id": {"type": "string", "description": "Finds the request in the log"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "code", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "JSON Pointer, file name or row"},
                    "code": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
        "hint": {"type": "string", "description": "What to do about it, if a command or a setting helps"},
        "violated-policies": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The limits that this client has reached: requests, queued-jobs, stored-bytes ...",
        },
        "total_errors": {"type": "integer", "description": "How many there are; the first 100 are shown"},
        "columns": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The columns of an uploaded table whose columns are not clear",
        },
        "sample_row": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The first row of that table, by column",
        },
    },
}
BINARY = {"schema": {"type": "string", "format": "binary"}}  # content of a file
CSV: dict[str, Any] = {"content": {"text/csv": {"schema": {"type": "string"}}}}  # a response beside JSON
OF_SESSIONS = frozenset({"/session", "/logout"})  # open to every caller, but nothing without a session
TITLES = {
    400: "Malformed request",
    401: "No valid API key",
    403: "Not allowed",
    404: "Not found",
    408: "The body arrives too slowly",
    409: "Conflict with the current state",
    412: "A precondition does not hold",
    413: "Too large",
    415: "Unsupported media type",
    416: "Range not satisfiable",
    422: "Invalid request",
    423: "In use",
    429: "Too many requests, or a limit is reached",
    460: "The checksum of the body is another",
    500: "A bug",
    503: "A dependency of the service is unavailable",
    504: "The deadline has passed",
    507: "Disk full",
}


def problems(*kinds: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """The `responses` argument of a route that can respond with these problems."""
    return {kind.status: {"description": TITLES[kind.status], "content": problem_content()} for kind in kinds}


def problem_content() -> dict[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}


def install(app: FastAPI, bodies: Callable[[], dict[str, dict[str, Any]]]) -> None:
    """Replace the application's `openapi()`, so that the document lists all problems and the types from the catalog.

    Args:
        bodies: Makes the JSON Schemas of request bodies by component name. Called for the first document: making them
            takes longer than all else that the application does before it starts.
    """
    generate, lock = app.openapi, threading.Lock()
    finished: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        with lock:
            if not finished:
                settings: Settings = app.state.settings
                cookie = sessions.Cookie(settings, sessions.COOKIE).name if settings.login_enabled else None
                finished.append(
                    complete_document(
                        generate(), bodies(), open_operations(app), key=settings.key_required, cookie=cookie
                    )
                )
        return finished[0]

    app.openapi = openapi  # type: ignore[method-assign]


def open_operations(app: FastAPI) -> set[tuple[str, str]]:
    """Path and method, in lower case, of the operations that anybody may call."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.required_scope.scope is None]
    return {(route.path_format, method.lower()) for route in routes for method in route.methods or ()}


def complete_document(
    document: dict[str, Any],
    bodies: dict[str, dict[str, Any]],
    public: set[tuple[str, str]],
    *,
    key: bool,
    cookie: str | None,
) -> dict[str, Any]:
    """The generated OpenAPI document with problems, bodies and security added.

    Args:
        bodies: JSON Schemas of request bodies by component name.
        public: Of `open_operations`.
        key: Whether a key is required.
        cookie: The name of the cookie of a session; None where nobody can log in.
    """
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = PROBLEM_SCHEMA
    for name, schema in bodies.items():
        schemas.update(schema.get("$defs", {}))
        schemas[name] = {keyword: value for keyword, value in schema.items() if keyword != "$defs"}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    if cookie is not None:
        components["securitySchemes"]["session"] = {
            "type": "apiKey",
            "in": "cookie",
            "name": cookie,
            "description": "Set by GET /login. Every request but GET, HEAD and OPTIONS then needs the `csrf_token` of "
            f"GET /session as {sessions.CSRF_HEADER}.",
        }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            is_open = (path, method) in public and path not in OF_SESSIONS
            add_problems(path, method, operation, key=key and not is_open, session=cookie is not None)
    return document


def without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter: one that may be left out is never null, which only a body can say."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{keyword: value for keyword, value in schema.items() if keyword != "anyOf"}}


def add_problems(path: str, method: str, operation: dict[str, Any], *, key: bool, session: bool) -> None:
    """Add to an operation the problems that it can respond with whatever its route does."""
    responses = operation["responses"]
    default_422 = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {})
    if default_422.get("$ref", "").endswith("HTTPValidationError"):
        del responses["422"]
    statuses = {400, 415, 422, 500, 503}
    if key:
        statuses |= {401, 403}
        by_session: list[dict[str, list[str]]] = [{"session": []}] if session else []
        operation["security"] = by_session if path in OF_SESSIONS else [{"key": []}, *by_session]
    for parameter in operation.get("parameters", []):
        parameter["schema"] = without_null(parameter["schema"])
    if path not in {"/livez", "/readyz"}:
        statuses.add(429)
    if "{" in path:
        statuses.add(404)
    if method != "get":
        statuses |= {403, 408, 413}
    if method == "get" and "200" in responses:
        responses.setdefault("304", {"description": "The client's copy is current"})
    for status in sorted(statuses):
        responses.setdefault(str(status), {"description": TITLES[status], "content": problem_content()})
