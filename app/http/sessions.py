"""Sessions of people who have logged in: whom a cookie names, and the CSRF token that each change must carry.

The cookie holds 256 random bits, of which only the SHA-256 is stored. A valid session is cached as a key is. Sessions
begin and end in `app.login`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Engine, or_, select, update
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from app.db import session as db
from app.db.clock import now
from app.db.tables import ApiKey, LoginSession
from app.errors import CsrfTokenRequired, DatabaseUnavailable
from app.http.access import KEY_FRESH_S, MOST_CACHED, KeyCache, Principal, digest, unauthenticated
from app.http.security import SAFE
from app.settings import Settings

SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # as `new_secret` makes it
COOKIE = "denll-session"
CSRF_HEADER = "X-CSRF-Token"
NAME_CHARS, SUBJECT_CHARS = 90, 100  # of a person, where entries of 200 characters name who acted


def new_secret() -> str:
    """256 random bits for a cookie."""
    return secrets.token_urlsafe(32)


def csrf_token(session_id: str) -> str:
    """The token of a session: who has its cookie, or asks `GET /session`, knows it. It does not tell the id."""
    return hmac.new(session_id.encode(), b"csrf", hashlib.sha256).hexdigest()


def person_name(name: str, subject: str) -> str:
    """How a person is named where they act. People choose names, so the subject, which they do not, always follows."""
    return f"{name[:NAME_CHARS]} ({subject[:SUBJECT_CHARS]})"


class Cookie:
    """A cookie of ours. Over https its name begins with `__Host-`: no other host or path can then set it.

    Args:
        settings: The public address decides whether the cookie needs https.
        name: Without that prefix.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._secure = settings.public_origin.startswith("https:")
        self.name = f"__Host-{name}" if self._secure else name

    def read(self, request: Request) -> str | None:
        """Its value; None without it, "" where it is not one of ours or was sent more than once."""
        values = [
            value.strip()
            for header in request.headers.getlist("cookie")
            for name, _, value in (part.partition("=") for part in header.split(";"))
            if name.strip() == self.name
        ]
        if not values:
            return None
        return values[0] if len(values) == 1 and SECRET.fullmatch(values[0]) else ""

    def set(self, response: Response, value: str, max_age_s: float) -> None:
        """Set it for so many seconds; no script can read it, and no other site's form sends it."""
        response.set_cookie(
            self.name, value, max_age=int(max_age_s), path="/", secure=self._secure, httponly=True, samesite="lax"
        )

    def delete(self, response: Response) -> None:
        """Delete it in the browser."""
        response.delete_cookie(self.name, path="/", secure=self._secure, httponly=True, samesite="lax")


class ValidSession(NamedTuple):
    """A session that was looked up; times are `time.monotonic()`."""

    principal: Principal
    looked_up: float
    expires: float


class SessionCache:
    """The sessions that this process has validated lately.

    Args:
        settings: Names the cookie, and the rate of people who have none of their own.
        engine: The database.
        keys: Learns when a person was last seen.
    """

    def __init__(self, settings: Settings, engine: Engine, keys: KeyCache) -> None:
        self.cookie = Cookie(settings, COOKIE)
        self._requests_per_s = settings.key_requests_per_s
        self._engine = engine
        self._keys = keys
        self._sessions: dict[str, ValidSession] = {}
        self._last_used: dict[str, float] = {}  # by the hash of an id: what is not written yet
        self._lock = threading.Lock()

    async def principal(self, session_id: str, before_unknown: Callable[[], None]) -> Principal:
        """The person whose session this is.

        Args:
            session_id: The value of the cookie.
            before_unknown: Called for a session that this process does not know, before it is looked up.

        Raises:
            Unauthenticated: The session is unknown, has ended or has expired.
        """
        hashed = digest(session_id)
        valid = self._sessions.get(hashed)
        if valid is None:
            before_unknown()
        if session_id and (valid is None or time.monotonic() - valid.looked_up > KEY_FRESH_S):
            valid = await run_in_threadpool(self._look_up, hashed, valid)
        now_s = time.monotonic()
        if valid is None or now_s >= valid.expires:
            raise unauthenticated("This session has ended: log in again.")
        self._last_used[hashed] = now_s
        self._keys.note_use(valid.principal.id)
        return valid.principal

    @staticmethod
    def check_csrf(request: Request, session_id: str) -> None:
        """Raise CsrfTokenRequired if the request would change something and lacks the token of its session."""
        if request.method in SAFE:
            return
        token = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(token.encode(), csrf_token(session_id).encode()):
            raise CsrfTokenRequired(f"Send the csrf_token of GET /session as {CSRF_HEADER}.")

    def clear(self) -> None:
        """Empty the cache: after sessions ended, they are looked up in the database again."""
        with self._lock:
            self._sessions.clear()

    def write_last_used(self) -> None:
        """Write when sessions were last used; while the database is unavailable that is left to the next call."""
        uses, self._last_used = self._last_used, {}
        if not uses:
            return
        try:
            with db.transaction(self._engine) as session:
                for hashed, used in sorted(uses.items()):
                    at = now(used - time.monotonic())
                    older = or_(LoginSession.last_used_at.is_(None), LoginSession.last_used_at < at)
                    session.execute(
                        update(LoginSession)
                        .where(LoginSession.id_sha256 == hashed, older)
                        .values(last_used_at=at)
                        .execution_options(synchronize_session=False)
                    )
        except DatabaseUnavailable:
            self._last_used = uses | self._last_used

    async def keep_last_used(self, period_s: float) -> None:
        """Call `write_last_used` every `period_s` seconds until it is cancelled."""
        while True:
            await asyncio.sleep(period_s)
            await run_in_threadpool(self.write_last_used)

    def _look_up(self, hashed: str, cached: ValidSession | None) -> ValidSession | None:
        """The session with this hash; the cached one while the database is unavailable."""
        statement = (
            select(
                ApiKey.id,
                ApiKey.name,
                ApiKey.subject,
                ApiKey.requests_per_s,
                LoginSession.scopes,
                LoginSession.expires_at,
                now().label("now"),
            )
            .join(ApiKey, ApiKey.id == LoginSession.key_id)
            .where(LoginSession.id_sha256 == hashed, LoginSession.expires_at > now(), ApiKey.revoked_at.is_(None))
        )
        try:
            with db.transaction(self._engine, read_only=True) as session:
                row = session.execute(statement).one_or_none()
        except DatabaseUnavailable:
            if cached is not None:
                return cached
            raise
        valid = None
        if row is not None:
            looked_up = time.monotonic()
            expires = looked_up + (row.expires_at - row.now).total_seconds()
            per_s = row.requests_per_s or self._requests_per_s
            name = person_name(row.name, row.subject)
            valid = ValidSession(Principal(str(row.id), frozenset(row.scopes), name, per_s), looked_up, expires)
        with self._lock:
            if len(self._sessions) >= MOST_CACHED:
                self._sessions.clear()
            if valid is not None:
                self._sessions[hashed] = valid
            else:
                self._sessions.pop(hashed, None)
        return valid
