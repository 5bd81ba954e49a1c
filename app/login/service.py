"""Logins that were begun, the people who finished one, and their sessions, as rows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db import audit
from app.db.audit import Actor
from app.db.clock import now
from app.db.tables import ApiKey, LoginSession, PendingLogin
from app.errors import KeyNotFound, NoAccess
from app.http import callers, sessions

PENDING_S = 600.0  # how long a login may take at the provider


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
    session: Session, person: Person, scopes: Sequence[str], *, replaced: str, lasts_s: float, request_id: str
) -> str:
    """Begin a session of a person; the id, which is not stored.

    A person whose scopes are others than at their last login loses all other sessions.

    Args:
        scopes: What the session may do, sorted.
        replaced: The session that the browser had, which ends; "" for none.
        lasts_s: Seconds until the person must log in again.
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
    session.add(
        LoginSession(id_sha256=callers.digest(session_id), key_id=row.id, scopes=list(scopes), expires_at=now(lasts_s))
    )
    actor = Actor(sessions.person_name(person.name, person.subject), row.id, request_id)
    audit.record(session, actor, "session.begin", f"/keys/{row.id}", scopes=list(scopes))
    return session_id


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
