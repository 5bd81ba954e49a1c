"""Who is asking, and what their key allows. Keys themselves are made and revoked by the slice `keys`.

A key once seen is remembered for a few seconds, and as long as the database is away: predictions outlive it (law 8).
"""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
import uuid
from typing import Annotated, Literal, NamedTuple

from fastapi import Depends
from sqlalchemy import Engine, select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.db import session as db
from app.db.tables import ApiKey
from app.errors import DatabaseUnavailable, Forbidden, Unauthenticated
from app.settings import Settings

Scope = Literal["read", "train", "predict", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "train", "predict", "admin")
KEY_FRESH_S = 5.0  # how long a revoked key may still work in another API process
KEYS_REMEMBERED = 1024


class Principal(NamedTuple):
    """`id` is "" for the loopback user, "admin" for the bootstrap key, else the key's id."""

    id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Forbidden unless it may."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"This needs a key with the scope {scope!r}.")


ANYBODY = Principal("", frozenset(SCOPES))
BOOTSTRAP = Principal("admin", frozenset(SCOPES))


def digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyCache:
    """Keys this process has seen lately."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        admin = settings.admin_key
        self._bootstrap = digest(admin.get_secret_value()) if admin else None
        self._engine = engine
        self._seen: dict[str, tuple[Principal | None, float]] = {}
        self._lock = threading.Lock()

    async def principal(self, authorization: str | None) -> Principal:
        """Whose request this is; Unauthenticated without a valid key where one is required."""
        if self._bootstrap is None:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise refused("Send an API key as Authorization: Bearer <key>.")
        hashed = digest(key.strip())
        if hmac.compare_digest(hashed, self._bootstrap):
            return BOOTSTRAP
        known, at = self._seen.get(hashed, (None, 0.0))
        if known is None or time.monotonic() - at > KEY_FRESH_S:
            known = await run_in_threadpool(self._look_up, hashed, known)
        if known is None:
            raise refused("This key is unknown or revoked.")
        return known

    def clear(self) -> None:
        """A key was revoked here: ask the database again about all."""
        with self._lock:
            self._seen.clear()

    def _look_up(self, hashed: str, remembered: Principal | None) -> Principal | None:
        try:
            with db.transaction(self._engine, read_only=True) as session:
                valid = (ApiKey.key_sha256 == hashed, ApiKey.revoked_at.is_(None))
                row = session.execute(select(ApiKey.id, ApiKey.scopes).where(*valid)).one_or_none()
        except DatabaseUnavailable:
            if remembered is not None:
                return remembered
            raise
        principal = Principal(str(row.id), frozenset(row.scopes)) if row else None
        with self._lock:
            if len(self._seen) >= KEYS_REMEMBERED:
                self._seen.clear()
            if principal is not None:
                self._seen[hashed] = (principal, time.monotonic())
            else:
                self._seen.pop(hashed, None)
        return principal


def refused(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": 'Bearer realm="denll"'})


class RequireScope:
    """What a route demands. `routing.Route` asks before it reads a body; as a dependency it only marks the route."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        return None

    async def check(self, request: Request) -> None:
        if self.scope is None:
            return
        principal = await request.app.state.key_cache.principal(request.headers.get("authorization"))
        principal.require(self.scope)
        request.state.principal = principal


OPEN, READ, TRAIN, PREDICT, ADMIN = (
    Depends(RequireScope(None)),
    Depends(RequireScope("read")),
    Depends(RequireScope("train")),
    Depends(RequireScope("predict")),
    Depends(RequireScope("admin")),
)


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]


def key_id(principal: Principal) -> uuid.UUID | None:
    return uuid.UUID(principal.id) if principal.id not in {"", "admin"} else None
