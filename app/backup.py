"""The rows of a backup: one file of JSON lines a table, the same from SQLite and Postgres, and into either.

Heartbeats are left out: a restored service would report processes that never started. So are logins: a session that
has ended since must not begin again. `worker.backup` copies the files.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, Engine, Enum, Table, Uuid, delete, exists, func, insert, select, text, update
from sqlalchemy.orm import Session

from app import retention
from app.datasets import ingest_queue
from app.db import schema
from app.db.clock import UtcTime
from app.db.tables import ENDED, Base, Dataset, DeviceLease, Job, LoginSession, PendingLogin, State, Worker
from app.jobs import attempt
from app.retention import ReferencedFiles

ROWS_AT_ONCE = 500
LEFT_OUT = (Worker.__table__, DeviceLease.__table__, LoginSession.__table__, PendingLogin.__table__)
TABLES: tuple[Table, ...] = tuple(table for table in Base.metadata.sorted_tables if table not in LEFT_OUT)


class Snapshot(NamedTuple):
    """What the rows of a backup say of files.

    Attributes:
        files: What its rows refer to.
        ready_datasets: Ids of the data sets that have a folder.
        ended_jobs: Ids of the jobs whose files no longer change.
    """

    files: ReferencedFiles
    ready_datasets: set[str]
    ended_jobs: set[str]


def dump(engine: Engine, folder: Path) -> Snapshot:
    """Write every table to `folder`, all as they are at one moment, while others go on writing.

    Raises:
        DatabaseUnavailable: The database has another schema than this code.
    """
    with _snapshot(engine) as connection:
        schema.require(connection)
        for table in TABLES:
            with (folder / f"{table.name}.jsonl").open("w", encoding="utf-8") as file:
                rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(select(table))
                file.writelines(_encode(table, row._asdict()) + "\n" for row in rows)
        session = Session(connection)
        ready = session.scalars(select(Dataset.id).where(Dataset.state == State.succeeded))
        ended = session.scalars(select(Job.id).where(Job.state.in_(ENDED)))
        return Snapshot(retention.referenced_files(session), {str(one) for one in ready}, {str(one) for one in ended})


def is_empty(session: Session) -> bool:
    """Whether no table of a backup has a row."""
    return not any(session.scalar(select(exists().select_from(table))) for table in TABLES)


def clear(session: Session) -> None:
    """Delete every row but heartbeats; sessions go with the people that they belong to."""
    for table in reversed(TABLES):
        if links := _self_references(table):
            session.execute(update(table).values(dict.fromkeys(links)))
        session.execute(delete(table))


def load(session: Session, folder: Path, *, limit: int) -> None:
    """Insert what `dump` wrote, into empty tables. Work that was running is queued again, as after a drain.

    Args:
        session: Its transaction holds all of it.
        folder: The files of `dump`.
        limit: As in `work.requeue`.
    """
    for table in TABLES:
        links = _self_references(table)
        lines = _lines(folder / f"{table.name}.jsonl")
        while rows := [_decode(table, line) for line in islice(lines, ROWS_AT_ONCE)]:
            session.execute(insert(table), [row | dict.fromkeys(links) for row in rows])
        # A row may refer to a later one of its own table: those references follow once all rows are there.
        for line in _lines(folder / f"{table.name}.jsonl") if links else ():
            row = _decode(table, line)
            if values := {name: row[name] for name in links if row[name] is not None}:
                session.execute(update(table).where(table.c.id == row["id"]).values(**values))
        _continue_numbers(session, table)

    for job_id, fence in session.execute(select(Job.id, Job.fence).where(Job.state == State.running)).all():
        attempt.requeue(session, job_id, fence, counts=False, limit=limit, reason="restored")
    for dataset_id, fence in session.execute(
        select(Dataset.id, Dataset.fence).where(Dataset.state == State.running)
    ).all():
        ingest_queue.requeue(session, dataset_id, fence, counts=False, limit=limit, reason="restored")


@contextlib.contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    """A connection that sees the database as of its first query (SQLite in WAL mode does in any transaction)."""
    is_sqlite = engine.dialect.name == "sqlite"
    options: dict[str, Any] = {"read_only": True} if is_sqlite else {"isolation_level": "REPEATABLE READ"}
    with engine.execution_options(**options).connect() as connection, connection.begin():
        yield connection


def _encode(table: Table, row: dict[str, Any]) -> str:
    values: dict[str, Any] = {}
    for name, value in row.items():
        kind = table.c[name].type
        if value is None:
            values[name] = None
        elif isinstance(kind, UtcTime):
            values[name] = value.isoformat()
        elif isinstance(kind, Uuid):
            values[name] = str(value)
        elif isinstance(kind, Enum):
            values[name] = value.value
        else:
            values[name] = value
    return json.dumps(values, ensure_ascii=True, allow_nan=False)


def _decode(table: Table, line: str) -> dict[str, Any]:
    """The row in a line; KeyError, ValueError or TypeError where it is none of this table."""
    return {name: _value(table.c[name], value) for name, value in json.loads(line).items()}


def _value(column: Column[Any], value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, UtcTime):
        return datetime.fromisoformat(value)
    if isinstance(column.type, Uuid):
        return uuid.UUID(value)
    return State(value) if isinstance(column.type, Enum) else value


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _self_references(table: Table) -> list[str]:
    """Columns that refer to rows of the same table."""
    return [key.parent.name for key in table.foreign_keys if key.column.table is table]


def _continue_numbers(session: Session, table: Table) -> None:
    """Let Postgres number new rows after those that were inserted with their numbers; SQLite does by itself."""
    column = table.autoincrement_column
    if session.get_bind().dialect.name == "postgresql" and column is not None:
        largest = session.scalar(select(func.max(column)))
        if largest is not None:
            sequence = text("SELECT setval(pg_get_serial_sequence(:table, :column), :largest)")
            session.execute(sequence, {"table": table.name, "column": column.name, "largest": largest})
