"""Logins that were begun, the people who finished one, and their sessions, as rows.

A session whose login gave a refresh token is checked: each time that the provider confirms it, it ends later. Where the
provider is away, or nobody uses the session, it ends after a while (`settings.session_grace_s`).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import audit
from app.db.audit import Actor
from app.db.clock import now
from app.db.tables import ApiKey, LoginSession, PendingLogin
from app.errors import KeyNotFound, NoAccess
from app.http import callers, sessions
from app.setting_types import SCOPES, Scope
from app.settings import Settings

PENDING_S = 600.0  # how long a login may take at the provider
CHECK_AGAIN_S = 30.0  # how long the check of a session may take, and when one that failed is repeated


class Person(NamedTuple):
    """Who has logged in.

    Attributes:
        issuer: The provider.
        subject: Who this is for the provider; never changes.
        name: What the provider calls them; may be anything that they chose.
    """

    issuer: str
    subject: str
    name: str


class Check(NamedTuple):
    """A session that the provider is to be asked about.

    Attributes:
        person: Whose it is; the issuer is that of the login.
        refresh_token: As it is stored.
    """

    person: Person
    refresh_token: str


def scopes_of(settings: Settings, values: frozenset[str]) -> list[Scope]:
    """What somebody may do, sorted, by the values of the claim that the settings name."""
    scopes = {*settings.login_default_scopes}.union(*(settings.login_scopes.get(value, ()) for value in values))
    return sorted(scope for scope in SCOPES if scope in scopes)


def begin(session: Session, secret: str, return_to: str) -> None:
    """Store that a login begins.

    Args:
        secret: Which the browser's cookie holds.
        return_to: The path of ours at which the browser ends.
    """
    row = PendingLogin(secret_sha256=callers.digest(secret), return_to=return_to, expires_at=now(PENDING_S))
    session.add(row)


def take(session: Session, secret: str) -> str | None:
    """End a login that was begun, whatever comes of it: its `return_to`, to one caller alone; None if it expired."""
    statement = (
        delete(PendingLogin)
        .where(PendingLogin.secret_sha256 == callers.digest(secret), PendingLogin.expires_at > now())
        .returning(PendingLogin.return_to)
    )
    return session.execute(statement).scalar_one_or_none()


def open_session(
    session: Session,
    person: Person,
    scopes: Sequence[str],
    *,
    settings: Settings,
    refresh_token: str | None,
    replaced: str,
    request_id: str,
) -> str:
    """Begin a session of a person; the id, which is not stored.

    A person whose scopes are others than before loses all other sessions.

    Args:
        scopes: What the session may do, sorted.
        settings: How long it lasts, and how often it is checked.
        refresh_token: The provider's, by which the session is checked; None where it gave none.
        replaced: The session that the browser had, which ends; "" for none.
        request_id: For the audit table.

    Raises:
        NoAccess: The person was revoked.
    """
    row = _lock_person(session, person, scopes)
    if row.revoked_at is not None:
        raise NoAccess("An admin of this service has revoked the access of this account.")
    if sorted(row.scopes) != list(scopes):
        session.execute(delete(LoginSession).where(LoginSession.key_id == row.id))
    if replaced:
        session.execute(delete(LoginSession).where(LoginSession.id_sha256 == callers.digest(replaced)))
    row.name, row.scopes = person.name, list(scopes)
    session_id = sessions.new_secret()
    begun = LoginSession(id_sha256=callers.digest(session_id), key_id=row.id, scopes=list(scopes))
    begun.created_at = _now(session)
    _confirm(session, begun, session_id, refresh_token, settings)
    session.add(begun)
    actor = Actor(sessions.person_name(person.name, person.subject), row.id, request_id)
    audit.record(session, actor, "session.begin", f"/keys/{row.id}", scopes=list(scopes))
    return session_id


def begin_check(session: Session, session_id: str) -> Check | None:
    """What to ask the provider with, for one caller alone; None where it is too early, or another one asks."""
    statement = (
        update(LoginSession)
        .where(LoginSession.id_sha256 == callers.digest(session_id), LoginSession.check_at <= now())
        .values(check_at=now(CHECK_AGAIN_S))
        .returning(LoginSession.key_id, LoginSession.refresh_token)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return None
    person = session.get_one(ApiKey, row.key_id)
    return Check(Person(person.issuer or "", person.subject or "", person.name), row.refresh_token or "")


def confirm(
    session: Session, session_id: str, person: Person, scopes: Sequence[str], refresh_token: str, settings: Settings
) -> None:
    """Store what the provider says of a session, which ends later now. Other scopes hold in all sessions of the person.

    Args:
        scopes: What the person may do now, sorted; at least one.
        refresh_token: For the next check.
        settings: How long the session lasts, and how often it is checked.
    """
    owner = _lock_person(session, person, scopes)  # first, as a login does: or each could wait for the other
    row = session.get(LoginSession, callers.digest(session_id), with_for_update=True)
    if row is None:  # it was ended meanwhile
        return
    _confirm(session, row, session_id, refresh_token, settings)
    if sorted(owner.scopes) == sorted(row.scopes) == list(scopes):
        return
    owner.scopes = list(scopes)
    of_person = update(LoginSession).where(LoginSession.key_id == owner.id)
    session.execute(of_person.values(scopes=list(scopes)).execution_options(synchronize_session=False))
    audit.record(session, audit.PROVIDER, "session.change", f"/keys/{owner.id}", scopes=list(scopes))


def refuse(session: Session, session_id: str, reason: str) -> None:
    """End a session that the provider does not confirm."""
    statement = delete(LoginSession).where(LoginSession.id_sha256 == callers.digest(session_id))
    key_id = session.execute(statement.returning(LoginSession.key_id)).scalar_one_or_none()
    if key_id is not None:
        audit.record(session, audit.PROVIDER, "session.end", f"/keys/{key_id}", reason=reason)


def end_sessions_of(session: Session, person: Person) -> None:
    """End every session of a person who has no scope any more."""
    known = select(ApiKey.id).where(ApiKey.issuer == person.issuer, ApiKey.subject == person.subject)
    session.execute(delete(LoginSession).where(LoginSession.key_id.in_(known)))


def end_session(session: Session, session_id: str, by: Actor) -> None:
    """End a session; one that has ended already stays so."""
    ended = session.execute(delete(LoginSession).where(LoginSession.id_sha256 == callers.digest(session_id)))
    if ended.rowcount:  # type: ignore[attr-defined]
        audit.record(session, by, "session.end", f"/keys/{by.key_id}")


def end_all(session: Session, person_id: uuid.UUID | None, by: Actor) -> int:
    """End every session, or every one of a person; how many.

    Raises:
        KeyNotFound: There is no such person.
    """
    statement = delete(LoginSession)
    if person_id is not None:
        if session.scalar(select(ApiKey.id).where(ApiKey.id == person_id, ApiKey.subject.is_not(None))) is None:
            raise KeyNotFound("There is no person with this id.")
        statement = statement.where(LoginSession.key_id == person_id)
    ended: int = session.execute(statement).rowcount  # type: ignore[attr-defined]
    audit.record(session, by, "session.end", f"/keys/{person_id}" if person_id else "/sessions", sessions=ended)
    return ended


def get(session: Session, session_id: str) -> tuple[LoginSession, ApiKey] | None:
    """A session and its person."""
    statement = select(LoginSession, ApiKey).join(ApiKey, ApiKey.id == LoginSession.key_id)
    row = session.execute(statement.where(LoginSession.id_sha256 == callers.digest(session_id))).one_or_none()
    return None if row is None else (row[0], row[1])


def _confirm(
    session: Session, row: LoginSession, session_id: str, refresh_token: str | None, settings: Settings
) -> None:
    """Set when a session that the provider has just confirmed is checked again, and when it ends."""
    row.expires_at = row.created_at + timedelta(seconds=settings.session_s)
    row.check_at = row.refresh_token = None
    if refresh_token is not None and settings.session_check_s:
        from app.login import refresh_token as tokens  # the provider has loaded it

        row.check_at = _now(session) + timedelta(seconds=settings.session_check_s)
        row.expires_at = min(row.expires_at, row.check_at + timedelta(seconds=settings.session_grace_s))
        row.refresh_token = tokens.encrypt(refresh_token, session_id)


def _now(session: Session) -> datetime:
    return session.execute(select(now())).scalar_one()


def _lock_person(session: Session, person: Person, scopes: Sequence[str]) -> ApiKey:
    """The person's row, made at the first login, which no other login of this person passes meanwhile."""
    identity = (ApiKey.issuer == person.issuer, ApiKey.subject == person.subject)
    known = select(ApiKey).where(*identity).with_for_update()
    row = session.scalar(known)
    if row is not None:
        return row
    row = ApiKey(issuer=person.issuer, subject=person.subject, name=person.name, scopes=list(scopes))
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # two first logins at once: the other one was first
        return session.execute(known).scalar_one()
    return row
