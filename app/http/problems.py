"""Every error as `application/problem+json`: problems of the service, errors of the framework, and bugs.

A document repeats nothing of the request body, so it can always be serialised: a NaN, a lone surrogate or binary bytes
must not turn a 422 into a 500.
"""

from __future__ import annotations

import difflib
import http
import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from app.errors import DatasetUnavailable, Fault, InvalidRequest, Malformed, Problem, snake
from ml.formats.errors import UnreadableFile, printable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
FAULTS_LISTED = 100  # of however many there are
COUNTED = Fault("", "counted", "")  # stands for a fault that is not listed: describing thousands takes seconds
NAME_CHARS = 100  # of a name that is no field of ours; our longest is far shorter


def describe(problem: Problem, *, request_id: str, instance: str) -> dict[str, Any]:
    """The problem document.

    Args:
        request_id: Id of the request, which the logs have as well.
        instance: Path of the request.
    """
    document: dict[str, Any] = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.http_status,
        "detail": problem.detail,
        "instance": printable(instance),
        "request_id": request_id,
    }
    if problem.errors:
        document["errors"] = [fault._asdict() for fault in problem.errors[:FAULTS_LISTED]]
        document["total_errors"] = len(problem.errors)
    return document | problem.members


def respond(connection: HTTPConnection, problem: Problem, **members: Any) -> Response:
    """The response with the problem document; `members` are extension members of this problem's type."""
    request_id = connection.scope.get("state", {}).get("request_id", "")
    document = describe(problem, request_id=request_id, instance=connection.scope["path"]) | members
    headers = {"Cache-Control": "no-store", **problem.headers}
    return Response(json.dumps(document), problem.http_status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Send every kind of error through `respond`."""

    async def respond_to_problem(request: Request, error: Exception) -> Response:
        return respond(request, error if isinstance(error, Problem) else internal_error())

    async def respond_to_unreadable(request: Request, error: Exception) -> Response:
        log.error("a file of a data set cannot be read", exc_info=error)
        return respond(request, DatasetUnavailable.missing_files())

    async def respond_to_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(request, from_validation(error.errors(), body_model(request)))

    async def respond_to_framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(request, from_framework(request, error))

    app.add_exception_handler(Problem, respond_to_problem)
    app.add_exception_handler(UnreadableFile, respond_to_unreadable)
    app.add_exception_handler(RequestValidationError, respond_to_validation)
    app.add_exception_handler(HTTPException, respond_to_framework)
    app.add_exception_handler(Exception, respond_to_problem)


def internal_error() -> Problem:
    """The problem of an unexpected error: the client learns nothing but the request id."""
    return Problem("Something went wrong on our side. The request_id finds it in the service's log.", code="internal")


def from_framework(request: Request, error: HTTPException) -> Problem:
    phrase = http.HTTPStatus(error.status_code).phrase
    details = {
        404: "There is nothing at this path.",
        405: f"{request.scope.get('original_method', request.method)} is not possible here; see the Allow header.",
        400: "The request body cannot be read.",
    }
    detail = details.get(error.status_code, phrase)
    problem = Problem(detail, code=snake(phrase.replace(" ", "")), status=error.status_code)
    problem.title = phrase  # type: ignore[misc]  # an instance of no subclass names itself
    problem.headers.update(error.headers or {})
    if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        problem.headers["Allow"] = ", ".join(request.app.state.allowed_methods.of(request.scope["path"]))
    return problem


def body_model(request: Request) -> Any:
    """The type this route's JSON body is parsed into, for `did you mean`."""
    field = getattr(request.scope.get("route"), "body_field", None)
    return getattr(getattr(field, "field_info", None), "annotation", None)


def from_validation(errors: Sequence[Any], model: Any = None) -> Problem:
    """Errors of pydantic as one InvalidRequest with a fault for each; Malformed when the body is not JSON.

    Args:
        errors: As `ValidationError.errors()` returns them, with `body` or `query` first in each location.
        model: The type of the body, for suggestions of field names.
    """
    if any(error["type"] == "json_invalid" for error in errors):
        return Malformed("The body is not JSON.")
    faults = [to_fault(error, model) for error in errors[:FAULTS_LISTED]]
    faults += [COUNTED] * (len(errors) - len(faults))
    return InvalidRequest(summary(faults), errors=faults)


def of_body(error: ValidationError, model: type[BaseModel]) -> Problem:
    """`from_validation` for a body that a route validates itself against `model`."""
    details = error.errors(include_url=False, include_input=False)
    return from_validation([{**line, "loc": ("body", *line["loc"])} for line in details], model)


def of_query(error: ValidationError) -> Problem:
    """The same for a query string that a route validates itself."""
    details = error.errors(include_url=False, include_input=False)
    return from_validation([{**line, "loc": ("query", *line["loc"])} for line in details])


def summary(faults: Sequence[Fault]) -> str:
    """The first fault in words, and how many more there are."""
    first = f"{faults[0].pointer or 'body'}: {faults[0].detail}"
    return first if len(faults) == 1 else f"{first} (and {len(faults) - 1} more)"


def to_fault(error: Any, model: Any = None) -> Fault:
    """One of pydantic's errors as a fault; `model` is the type of the body, for suggestions of field names."""
    location, code, message = tuple(error["loc"]), str(error["type"]), str(error["msg"])
    if code == "extra_forbidden":
        code, message = (
            "unknown_field",
            f"There is no such field.{did_you_mean(location[-1], field_names(model, location))}",
        )
    elif code == "missing":
        code, message = "required", "This field is required."
    elif code == "value_error":
        message = message.removeprefix("Value error, ")
    return Fault(pointer(location), code, printable(message))


def pointer(location: Sequence[Any]) -> str:
    """`("body", "params", "a/b")` -> `/params/a~1b`; elsewhere the first part stays: `/query/limit`."""
    parts = location[1:] if location and location[0] == "body" else location
    return "".join("/" + printable(part).replace("~", "~0").replace("/", "~1") for part in parts)


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """A suggestion of the most similar name, as a sentence; "" when none is similar.

    It is slow: use it only for the faults that a response lists.
    """
    close = difflib.get_close_matches(str(name)[:NAME_CHARS], list(names), n=1, cutoff=0.7)
    return f" Did you mean {close[0]!r}?" if close else ""


def field_names(model: Any, location: Sequence[Any]) -> list[str]:
    """Field names of the object in which `location` ends, as far as the types within `model` define them."""
    current = model
    for part in location[1:-1]:
        current = next(
            (f.annotation for m in models_in(current) for n, f in m.model_fields.items() if n == part), current
        )
    return [name for model_ in models_in(current) for name in model_.model_fields]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type, such as those of a union or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in getattr(annotation, "__args__", ()) for model in models_in(inner)]
