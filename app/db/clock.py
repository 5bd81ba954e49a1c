"""The database's clock in SQL, which alone measures leases; and UTC datetimes on both databases."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A timezone-aware UTC datetime, also when it is read from SQLite, which stores text without a time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's time of day, `plus` seconds; not the transaction's start, so a long transaction sees time pass."""

    inherit_cache = True
    type = UtcTime()

    def __init__(self, plus: float = 0.0) -> None:
        super().__init__(*([literal(f"{plus:+.3f} seconds")] if plus else []))


# The seconds are a parameter: inside the text they would make every statement a new one, to be compiled again.
@compiles(now, "sqlite")
def _sqlite(element: now, compiler: SQLCompiler, **named: Any) -> str:
    # Padded to microseconds: the driver reads three digits as microseconds, and text must compare as time does.
    plus = "".join(f", {compiler.process(seconds, **named)}" for seconds in element.clauses)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now'{plus}) || '000')"


@compiles(now, "postgresql")
def _postgresql(element: now, compiler: SQLCompiler, **named: Any) -> str:
    plus = "".join(f" + CAST({compiler.process(seconds, **named)} AS interval)" for seconds in element.clauses)
    return f"(clock_timestamp(){plus})"
