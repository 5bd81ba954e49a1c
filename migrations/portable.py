"""Types and defaults as migrations write them: the same words on SQLite and Postgres. Never changes its meaning."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

SQLITE_NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"


def json() -> sa.types.TypeEngine[Any]:
    return sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def big_id() -> sa.types.TypeEngine[int]:
    """SQLite counts only INTEGER keys up by itself."""
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def time() -> sa.types.TypeEngine[datetime]:
    return sa.DateTime(timezone=True)


def now() -> sa.TextClause:
    """The database's clock as a column default."""
    return sa.text(SQLITE_NOW if op.get_context().dialect.name == "sqlite" else "clock_timestamp()")
