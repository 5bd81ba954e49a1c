"""Compares the schema of the database with the one that this code knows.

While they differ, a process does not use the database, as if it were unavailable. So a process of the previous version
writes no rows that the next version would not understand, and one of the next version waits for the migration (F31).
"""

from __future__ import annotations

import logging
import time

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select
from sqlalchemy.orm import Session

from app.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

REVISION = "202611306a1d"  # of the newest migration: the one that makes the tables of `app.db.tables`
VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))  # Alembic's own
CHECK_S = 5.0  # a result is repeated for this long
RETRY_S = 30


class SchemaCheck:
    """Repeats `require` for the transactions of one engine; safe to call from several threads."""

    def __init__(self) -> None:
        self._check_at = float("-inf")
        self._mismatch: str | None = None

    def run(self, session: Session) -> None:
        """Raise as `require` does; most calls repeat the latest result, without asking the database."""
        if time.monotonic() >= self._check_at:
            mismatch = _mismatch(session.connection())
            if mismatch is not None and mismatch != self._mismatch:
                log.error("the database is not used: %s", mismatch)
            self._mismatch, self._check_at = mismatch, time.monotonic() + CHECK_S
        _refuse(self._mismatch)


def require(connection: Connection) -> None:
    """Raise DatabaseUnavailable, with the code `schema_mismatch`, unless the database has the schema of this code."""
    _refuse(_mismatch(connection))


def _mismatch(connection: Connection) -> str | None:
    """What is wrong with the schema of a database, a sentence; None when it is the one that this code knows."""
    revision = None
    if inspect(connection).has_table(VERSIONS.name):
        revision = connection.scalar(select(VERSIONS.c.version_num))
    if revision == REVISION:
        return None
    has = f"the schema {revision}" if revision else "no schema"
    return f"The database has {has}, this version of the service needs {REVISION}: run one version everywhere."


def _refuse(mismatch: str | None) -> None:
    if mismatch is not None:
        raise DatabaseUnavailable(mismatch, code="schema_mismatch", retry_after_s=RETRY_S)
