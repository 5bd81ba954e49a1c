"""Authentication by API key and the scopes that routes require. Keys are created and revoked in `app.keys`.

Where people log in, a request without a key may show a session instead (`app.http.sessions`).
"""

from __future__ import annotations

import functools
import hmac
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from sqlalchemy import Engine, Select, select
from starlette.requests import Request

from app.db.audit import Actor
from app.db.clock import now
from app.db.tables import ApiKey
from app.errors import Unauthenticated
from app.http.callers import CallerCache, Principal, digest
from app.http.rate_limit import RateLimiter
from app.setting_types import SCOPES, Scope
from app.settings import Settings

if TYPE_CHECKING:
    from app.http.sessions import SessionCache

LOOPBACK = "loopback"  # who acts without a key
ANYBODY = Principal("", frozenset(SCOPES), "")
BOOTSTRAP = Principal("admin", frozenset(SCOPES), "admin")


class KeyCache(CallerCache):
    """The keys that this process has validated lately."""

    def __init__(self, settings: Settings, engine: Engine) -> None:
        super().__init__(settings, engine, ApiKey.id, ApiKey.last_used_at)
        admin = settings.admin_key
        self._bootstrap = digest(admin.get_secret_value()) if admin else None

    async def principal(self, authorization: str | None, before_unknown: Callable[[], None]) -> Principal:
        """The caller that this Authorization header names.

        Args:
            authorization: The header.
            before_unknown: Called for a caller without a key that this process knows, before anything is looked up.

        Raises:
            Unauthenticated: A key is required, and this is no valid one.
        """
        if self._bootstrap is None:
            before_unknown()
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            before_unknown()
            raise unauthenticated("Send an API key as Authorization: Bearer <key>.")
        hashed = digest(key.strip())
        if hmac.compare_digest(hashed, self._bootstrap):
            return BOOTSTRAP
        valid = await self.find(hashed, before_unknown)
        if valid is None:
            raise unauthenticated("This key is unknown or revoked.")
        if valid.expires_at is not None and time.monotonic() >= valid.expires:
            raise unauthenticated(f"This key expired at {valid.expires_at.isoformat(timespec='seconds')}.")
        self.note_use(valid.principal.id)
        return valid.principal

    def _select(self, hashed: str) -> Select[Any]:
        columns = (ApiKey.id, ApiKey.name, ApiKey.scopes, ApiKey.requests_per_s, ApiKey.expires_at, now().label("now"))
        return select(*columns).where(ApiKey.key_sha256 == hashed, ApiKey.revoked_at.is_(None))


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
        """Store the caller as `request.state.principal`.

        Raises:
            Unauthenticated: There is no valid key, and no valid session.
            RateLimited: The caller, or the address without a valid key, sends too many requests.
            CsrfTokenRequired: A session is to change something without its token.
            Forbidden: The caller lacks the scope.
        """
        if self.scope is None:
            return
        principal = await authenticate(request)
        principal.require(self.scope)
        request.state.principal = principal


async def authenticate(request: Request) -> Principal:
    """The caller: by the Authorization header, or without one by the cookie of a session; see `RequireScope.check`."""
    state = request.app.state
    limiter: RateLimiter = state.rate_limiter
    sessions: SessionCache | None = state.session_cache
    before_unknown = functools.partial(limiter.limit_address, request)
    authorization = request.headers.get("authorization")
    session_id = None if authorization is not None or sessions is None else sessions.cookie.read(request)
    if sessions is None or session_id is None:
        principal: Principal = await state.key_cache.principal(authorization, before_unknown)
    else:
        principal = await sessions.principal(session_id, before_unknown)
    if principal.requests_per_s:
        limiter.limit_key(request, principal.id, principal.requests_per_s)
    if sessions is not None and session_id is not None:
        sessions.check_csrf(request, session_id)
    return principal


def clear_caches(request: Request) -> None:
    """After callers lost a right: look all of them up again in this process; others do so within `callers.FRESH_S`."""
    state = request.app.state
    state.key_cache.clear()
    if state.session_cache is not None:
        state.session_cache.clear()


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
    """The id of the caller's key or person; None for the loopback user and the bootstrap key."""
    return uuid.UUID(principal.id) if principal.id not in {"", "admin"} else None


def actor_of(request: Request) -> Actor:
    """The caller, for the audit table."""
    principal: Principal = request.state.principal
    return Actor(principal.name or LOOPBACK, key_id(principal), request.state.request_id)


async def _actor(request: Request) -> Actor:
    return actor_of(request)


By = Annotated[Actor, Depends(_actor)]
