"""Authentication by API key and the scopes that routes require. Keys are created and revoked in `app.keys`.

A valid key is cached for a few seconds, and for as long as the database is unavailable, so that predictions need no
database.
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
MOST_CACHED = 1024


class Principal(NamedTuple):
    """The caller: `id` is "" for the loopback user, "admin" for the bootstrap key, else the key's id."""

    id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Raise Forbidden unless the caller has this scope or `admin`."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise Forbidden(f"This needs a key with the scope {scope!r}.")


ANYBODY = Principal("", frozenset(SCOPES))
BOOTSTRAP = Principal("admin", frozenset(SCOPES))


def digest(key: str) -> str:
    """The SHA-256 of a key in hexadecimal, as it is stored."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyCache:
    """The keys that this process has validated lately."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        admin = settings.admin_key
        self._bootstrap = digest(admin.get_secret_value()) if admin else None
        self._engine = engine
        self._principals: dict[str, tuple[Principal | None, float]] = {}
        self._lock = threading.Lock()

    async def principal(self, authorization: str | None) -> Principal:
        """The caller that this Authorization header names; Unauthenticated without a valid key if one is required."""
        if self._bootstrap is None:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise unauthenticated("Send an API key as Authorization: Bearer <key>.")
        hashed = digest(key.strip())
        if hmac.compare_digest(hashed, self._bootstrap):
            return BOOTSTRAP
        principal, cached_at = self._principals.get(hashed, (None, 0.0))
        if principal is None or time.monotonic() - cached_at > KEY_FRESH_S:
            principal = await run_in_threadpool(self._look_up, hashed, principal)
        if principal is None:
            raise unauthenticated("This key is unknown or revoked.")
        return principal

    def clear(self) -> None:
        """Empty the cache: after a key was revoked, keys are looked up in the database again."""
        with self._lock:
            self._principals.clear()

    def _look_up(self, hashed: str, cached: Principal | None) -> Principal | None:
        """The caller with this key; the cached one while the database is unavailable."""
        try:
            with db.transaction(self._engine, read_only=True) as session:
                valid = (ApiKey.key_sha256 == hashed, ApiKey.revoked_at.is_(None))
                row = session.execute(select(ApiKey.id, ApiKey.scopes).where(*valid)).one_or_none()
        except DatabaseUnavailable:
            if cached is not None:
                return cached
            raise
        principal = Principal(str(row.id), frozenset(row.scopes)) if row else None
        with self._lock:
            if len(self._principals) >= MOST_CACHED:
                self._principals.clear()
            if principal is not None:
                self._principals[hashed] = (principal, time.monotonic())
            else:
                self._principals.pop(hashed, None)
        return principal


def unauthenticated(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, headers={"WWW-Authenticate": 'Bearer realm="denll"'})


class RequireScope:
    """The scope that a route requires, None for public routes.

    As a dependency it only declares the scope; `routing.Route` checks it before it reads the body.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> None:
        return None

    async def check(self, request: Request) -> None:
        """Store the caller as `request.state.principal`; raises Unauthenticated, or Forbidden without the scope."""
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
    """The id of the caller's key; None for the loopback user and the bootstrap key."""
    return uuid.UUID(principal.id) if principal.id not in {"", "admin"} else None
