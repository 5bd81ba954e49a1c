"""How a migration runs: one at a time, on SQLite with foreign keys off, on Postgres under an advisory lock.

Imports the tables only; a migration file never does, so that it still means the same years later.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from sqlalchemy import JSON, Connection, create_engine, event, text
from sqlalchemy.engine import make_url

from app.db.clock import UtcTime, now
from app.db.tables import Base, BigId
from app.settings import Settings, current

ADVISORY_LOCK = 0x64656E6C6C  # "denll"


def render(kind: str, thing: object, _: object) -> str | Literal[False]:
    """Draft migrations in portable words: they must depend neither on the application nor on one database."""
    if kind == "type":
        words = {"time": isinstance(thing, UtcTime), "json": isinstance(thing, JSON), "big_id": thing is BigId}
        for word in (name for name, fits in words.items() if fits):
            return f"portable.{word}()"
    if kind == "server_default" and isinstance(getattr(thing, "arg", None), now):
        return "portable.now()"
    return False


def sqlite_without_foreign_keys(connection: Any, _: Any) -> None:
    # A batch migration drops and recreates the parent table; with foreign keys on, that empties its children.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=OFF")
    connection.execute("PRAGMA busy_timeout=60000")


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        compare_type=True,
        compare_server_default=False,  # `now()` renders differently on each database
        render_item=render,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    settings: Settings = context.config.attributes.get("settings") or current()
    url = make_url(settings.database)
    engine = create_engine(url)
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", sqlite_without_foreign_keys)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    with engine.connect() as connection:
        if url.get_backend_name() == "postgresql":
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": ADVISORY_LOCK})
            connection.commit()
        migrate(connection)
        connection.commit()
    engine.dispose()


main()
