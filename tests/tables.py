"""Every table without the migrations, which take longer: a database of the schema that this code knows."""

from __future__ import annotations

from sqlalchemy import Engine, delete, insert

from app.db import schema
from app.db.tables import Base


def create_tables(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    record_revision(engine, schema.REVISION)


def record_revision(engine: Engine, revision: str) -> None:
    """Have the database say that it has this schema, as a migration does at its end."""
    schema.VERSIONS.create(engine, checkfirst=True)
    with engine.begin() as connection:
        connection.execute(delete(schema.VERSIONS))
        connection.execute(insert(schema.VERSIONS).values(version_num=revision))
