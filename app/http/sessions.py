"""Sessions of people who have logged in: whom a cookie names, and the CSRF token that each change must carry.

The cookie holds 256 random bits, of which only the SHA-256 is stored. A valid session is cached as a key is. Sessions
begin and end in `app.login`, which also asks the provider from time to time what a person may do now: beside the
request that finds that it is time, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Engine, Row, Select, select
from starlette.requests import Request
from starlette.responses import Response

from app.db.clock import now
from app.db.tables import ApiKey, LoginSession
from app.errors import CsrfTokenRequired, DatabaseUnavailable
from app.http.access import KeyCache, unauthenticated
from app.http.callers import CallerCache, Principal, ValidCaller, digest
from app.http.security import SAFE
from app.settings import Settings

log = logging.getLogger(__name__)

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


class SessionCache(CallerCache):
    """The sessions that this process has validated lately.

    Args:
        settings: Names the cookie, and the rate of people who have none of their own.
        engine: The database.
        keys: Learns when a person was last seen.
        check: Asks the provider about the session with this id.
    """

    def __init__(
        self, settings: Settings, engine: Engine, keys: KeyCache, check: Callable[[str], Awaitable[None]]
    ) -> None:
        super().__init__(settings, engine, LoginSession.id_sha256, LoginSession.last_used_at)
        self.cookie = Cookie(settings, COOKIE)
        self._keys = keys
        self._check = check
        self._checks: dict[str, asyncio.Task[None]] = {}  # those that run, by the hash of the session's id

    async def principal(self, session_id: str, before_unknown: Callable[[], None]) -> Principal:
        """The person whose session this is.

        Args:
            session_id: The value of the cookie.
            before_unknown: Called for a session that this process does not know, before it is looked up.

        Raises:
            Unauthenticated: The session is unknown, has ended or has expired.
        """
        hashed = digest(session_id)
        if not session_id:  # what no cookie of ours holds needs no query
            before_unknown()
        valid = await self.find(hashed, before_unknown) if session_id else None
        if valid is None or time.monotonic() >= valid.expires:
            raise unauthenticated("This session has ended: log in again.")
        if time.monotonic() >= valid.check and hashed not in self._checks:
            self._checks[hashed] = asyncio.create_task(self._run_check(session_id, hashed))
        self.note_use(hashed)
        self._keys.note_use(valid.principal.id)
        return valid.principal

    async def close(self) -> None:
        """End the checks that run."""
        for task in self._checks.values():
            task.cancel()
        await asyncio.gather(*self._checks.values(), return_exceptions=True)

    async def _run_check(self, session_id: str, hashed: str) -> None:
        try:
            await self._check(session_id)
        except DatabaseUnavailable as error:
            log.warning("a session was not checked: %s", error)
        except Exception:
            log.exception("a session was not checked")
        finally:
            del self._checks[hashed]
            self.look_up_again(hashed)

    @staticmethod
    def check_csrf(request: Request, session_id: str) -> None:
        """Raise CsrfTokenRequired if the request would change something and lacks the token of its session."""
        if request.method in SAFE:
            return
        token = request.headers.get(CSRF_HEADER, "")
        if not hmac.compare_digest(token.encode(), csrf_token(session_id).encode()):
            raise CsrfTokenRequired(f"Send the csrf_token of GET /session as {CSRF_HEADER}.")

    def _select(self, hashed: str) -> Select[Any]:
        person = (ApiKey.id, ApiKey.name, ApiKey.subject, ApiKey.requests_per_s)
        return (
            select(*person, LoginSession.scopes, LoginSession.expires_at, LoginSession.check_at, now().label("now"))
            .join(ApiKey, ApiKey.id == LoginSession.key_id)
            .where(LoginSession.id_sha256 == hashed, LoginSession.expires_at > now(), ApiKey.revoked_at.is_(None))
        )

    def _valid(self, row: Row[Any], looked_up: float) -> ValidCaller:
        valid = super()._valid(row, looked_up)
        if row.check_at is None:
            return valid
        return valid._replace(check=looked_up + (row.check_at - row.now).total_seconds())

    def _name(self, row: Row[Any]) -> str:
        return person_name(row.name, row.subject)
