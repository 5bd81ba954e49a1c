"""Asks the provider whether a session is still what it was at the login: its person may have lost a group, or left."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from app.db import session as db
from app.errors import LoginDenied, LoginNotVerified, LoginUnavailable
from app.login import service
from app.login.provider import Provider
from app.login.service import Person
from app.setting_types import Scope
from app.settings import Settings

log = logging.getLogger(__name__)

LONGEST_S = service.CHECK_AGAIN_S - 5.0  # afterwards another process may ask with the same refresh token


class SessionCheck:
    """Checks sessions; to be called beside requests, as it waits for the provider.

    Args:
        settings: Which scopes the provider's claims give, and how long sessions last.
        engine: The database.
        provider: Who is asked.
    """

    def __init__(self, settings: Settings, engine: Engine, provider: Provider) -> None:
        self._settings, self._engine, self._provider = settings, engine, provider

    async def __call__(self, session_id: str) -> None:
        """Check the session with this id, unless another process does. Where the provider is away it stays as it is.

        Raises:
            DatabaseUnavailable: Nothing was asked, or what the provider said is lost.
        """
        check = await run_in_threadpool(self._begin, session_id)
        if check is None:
            return
        try:
            async with asyncio.timeout(LONGEST_S):
                token = await run_in_threadpool(_decrypted, check.refresh_token, session_id)
                identity = await self._provider.refresh(token, check.person.subject)
        except (LoginUnavailable, TimeoutError) as error:
            log.warning("a session was not checked, and goes on until it ends: %s", error or "the provider is too slow")
            return
        except (LoginDenied, LoginNotVerified, ValueError) as error:
            log.warning("a session has ended: %s", error)
            await run_in_threadpool(self._refuse, session_id, "the provider no longer confirms it")
            return
        scopes = service.scopes_of(self._settings, identity.values)
        if not scopes:
            await run_in_threadpool(self._refuse, session_id, "no value of the claim gives a scope", check.person)
            return
        await run_in_threadpool(self._confirm, session_id, check.person, scopes, identity.refresh_token or token)

    def _begin(self, session_id: str) -> service.Check | None:
        with db.transaction(self._engine) as session:
            return service.begin_check(session, session_id)

    def _confirm(self, session_id: str, person: Person, scopes: list[Scope], token: str) -> None:
        with db.transaction(self._engine) as session:
            service.confirm(session, session_id, person, scopes, token, self._settings)

    def _refuse(self, session_id: str, reason: str, person: Person | None = None) -> None:
        with db.transaction(self._engine) as session:
            service.refuse(session, session_id, reason)
            if person is not None:
                service.end_sessions_of(session, person)


def _decrypted(stored: str, session_id: str) -> str:
    from app.login import refresh_token  # takes a while to load

    return refresh_token.decrypt(stored, session_id)
