"""Idempotency-Key: the response to a creating request is stored and replayed when the request is repeated.

A unique row decides which of several requests with one key is the first. It is written in the transaction that creates
the resource, so a crash leaves neither.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header
from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.db.clock import now
from app.db.tables import IdempotencyKey
from app.errors import Fault, IdempotencyMismatch, InvalidRequest, RequestInFlight
from app.http.callers import Principal

BARE_KEY = re.compile(r"[\x21\x23-\x7e][\x21-\x7e]*")
QUOTED_KEY = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])+)"')  # a string of RFC 9651, and not empty
LONGEST_KEY = 255
LONGEST_HEADER = 2 * LONGEST_KEY + 2  # every character escaped, and quotes around them
IN_FLIGHT_S = 3600.0  # an upload's reservation that its process never finished is void after this
RETRY_S = 1


@dataclass(frozen=True)
class StoredResponse:
    """The response to a creating request."""

    status: int
    headers: dict[str, str]
    body: Any

    def response(self, *, replayed: bool = False) -> Response:
        """The response to send; a replayed one has the header `Idempotency-Replayed`."""
        headers = self.headers | ({"Idempotency-Replayed": "true"} if replayed else {})
        return JSONResponse(self.body, self.status, headers)


@dataclass(frozen=True)
class IdempotentRequest:
    """One caller's Idempotency-Key on one route; the response is replayed for `ttl_s` seconds."""

    principal: str
    route: str
    key: str
    ttl_s: float

    def begin(self, session: Session, request_hash: str | None) -> tuple[StoredResponse, str] | None:
        """Reserve the key, or return the stored response and the hash of the request that it belongs to.

        While another transaction creates with the same key, this waits for it to end.

        Args:
            request_hash: `request_hash` of the request; None when the caller compares it later.

        Raises:
            IdempotencyMismatch: The key belongs to a request with another content.
            RequestInFlight: The key was reserved in a transaction of its own, and has no response yet.
        """
        old = IdempotencyKey.created_at < now(-self.ttl_s)
        abandoned = IdempotencyKey.answer.is_(None) & (IdempotencyKey.created_at < now(-IN_FLIGHT_S))
        here = (IdempotencyKey.principal == self.principal, IdempotencyKey.route == self.route)
        session.execute(delete(IdempotencyKey).where(*here, old | abandoned))
        row = IdempotencyKey(
            principal=self.principal, route=self.route, key=self.key, request_hash=request_hash or "", answer=None
        )
        try:
            with session.begin_nested():
                session.add(row)
        except IntegrityError:
            stored = session.get(IdempotencyKey, (self.principal, self.route, self.key), populate_existing=True)
            if stored is None or stored.answer is None:
                raise RequestInFlight(
                    "The first request with this Idempotency-Key is still being answered.",
                    retry_after_s=RETRY_S,
                ) from None
            if request_hash is not None:
                self.compare(stored.request_hash, request_hash)
            return StoredResponse(**stored.answer), stored.request_hash
        return None

    @staticmethod
    def compare(stored_hash: str, request_hash: str) -> None:
        """IdempotencyMismatch unless both values of `request_hash` are the same."""
        if stored_hash != request_hash:
            raise IdempotencyMismatch("This Idempotency-Key belongs to a request with another content.")

    def finish(self, session: Session, request_hash: str, response: StoredResponse) -> None:
        """Store the response, in the transaction that creates the resource."""
        stored = {"status": response.status, "headers": response.headers, "body": response.body}
        session.execute(
            update(IdempotencyKey).where(*self._conditions()).values(answer=stored, request_hash=request_hash)
        )

    def abandon(self, session: Session) -> None:
        """Give up a reservation: nothing was created."""
        session.execute(delete(IdempotencyKey).where(*self._conditions(), IdempotencyKey.answer.is_(None)))

    def _conditions(self) -> tuple[Any, ...]:
        return (
            IdempotencyKey.principal == self.principal,
            IdempotencyKey.route == self.route,
            IdempotencyKey.key == self.key,
        )


async def _key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=LONGEST_HEADER,
            description="Repeat a request safely: the first response is replayed. A structured-field string: "
            '`"k1"`, or without quotes `k1`, which is the same key',
            json_schema_extra={"pattern": f"^({BARE_KEY.pattern}|{QUOTED_KEY.pattern})$", "maxLength": LONGEST_KEY},
        ),
    ] = None,
) -> IdempotentRequest | None:
    if idempotency_key is None:
        return None
    key = parse_key(idempotency_key)
    principal: Principal = request.state.principal
    route = f"{request.method} {request.scope['route'].path}"
    return IdempotentRequest(principal.id, route, key, request.app.state.settings.idempotency_ttl_s)


def parse_key(header: str) -> str:
    """The key that a header names: the value of a structured-field string (RFC 9651), or the header as it is.

    Args:
        header: `"k1"` as the Idempotency-Key draft has it, or `k1` as most clients send it: one key.

    Raises:
        InvalidRequest: It is neither, or longer than 255 characters.
    """
    if quoted := QUOTED_KEY.fullmatch(header):
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    else:
        key = header if BARE_KEY.fullmatch(header) else ""
    if not 0 < len(key) <= LONGEST_KEY:
        detail = "Use 1 to 255 visible ASCII characters, or a string between double quotes."
        raise InvalidRequest(detail, errors=[Fault("/header/Idempotency-Key", "idempotency_key", detail)])
    return key


Idempotency = Annotated[IdempotentRequest | None, Depends(_key)]


def respond_once(
    session: Session, key: IdempotentRequest | None, hashed: str, create: Callable[[], StoredResponse]
) -> Response:
    """Call `create` and respond with what it returns, or replay the response to an earlier request with the same key.

    Args:
        session: The transaction in which `create` writes.
        key: None where the client sent no Idempotency-Key: then nothing is stored.
        hashed: `request_hash` of the request.

    Raises:
        IdempotencyMismatch: The key belongs to a request with another content.
        RequestInFlight: The first request with this key is not answered yet.
    """
    if key is not None and (stored := key.begin(session, hashed)):
        return stored[0].response(replayed=True)
    response = create()
    if key is not None:
        key.finish(session, hashed, response)
    return response.response()


def request_hash(*parts: Any) -> str:
    """SHA-256 of the parts as canonical JSON, so that the order of fields and white space do not matter."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()
