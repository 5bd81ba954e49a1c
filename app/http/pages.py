"""Keyset pages, newest first: a cursor names the last row seen, so rows that arrive meanwhile shift nothing."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, NamedTuple, Protocol, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from app.errors import Fault, InvalidRequest

Element = TypeVar("Element")
Source = TypeVar("Source")


class HasNumber(Protocol):
    @property
    def number(self) -> int: ...


Numbered = TypeVar("Numbered", bound=HasNumber)


class Page(BaseModel, Generic[Element]):
    items: list[Element]
    next_cursor: str | None


class PageParams(NamedTuple):
    limit: int
    cursor: str | None


async def _page_params(
    limit: Annotated[int, Query(ge=1, le=200, description="Most items of one page")] = 50,
    cursor: Annotated[str | None, Query(max_length=400, description="`next_cursor` of the page before")] = None,
) -> PageParams:
    return PageParams(limit, cursor)


Paging = Annotated[PageParams, Depends(_page_params)]


def newest(
    session: Session, statement: Select[Source], table: Any, params: PageParams
) -> tuple[list[Source], str | None]:
    """One page of a table with `created_at` and `id`, and the cursor of the next."""
    if params.cursor is not None:
        at, last = decode(params.cursor, parse_time_and_id)
        statement = statement.where(or_(table.created_at < at, and_(table.created_at == at, table.id < last)))
    statement = statement.order_by(table.created_at.desc(), table.id.desc()).limit(params.limit + 1)
    rows = list(session.scalars(statement))
    more = len(rows) > params.limit
    rows = rows[: params.limit]
    return rows, encode([rows[-1].created_at.isoformat(), str(rows[-1].id)]) if more else None  # type: ignore[attr-defined]


def sliced(items: Sequence[Source], params: PageParams) -> tuple[list[Source], str | None]:
    """One page of a list that never changes its order."""
    start = after(params, 0)
    end = start + params.limit
    return list(items[start:end]), encode([end]) if end < len(items) else None


def numbered(rows: Sequence[Numbered], params: PageParams) -> tuple[Sequence[Numbered], str | None]:
    """One page of rows in the order of their numbers, one more than its limit having been read behind `after`."""
    kept = rows[: params.limit]
    return kept, encode([kept[-1].number]) if len(rows) > len(kept) else None


def after(params: PageParams, start: int) -> int:
    """Where the page before ended, or `start`."""
    found: int = decode(params.cursor, parse_offset) if params.cursor is not None else start
    return found


def encode(values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, parse: Any) -> Any:
    try:
        return parse(json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error):
        detail = "Not a cursor of this collection."
        raise InvalidRequest(detail, errors=[Fault("/query/cursor", "cursor", detail)]) from None


def parse_time_and_id(values: Any) -> tuple[datetime, uuid.UUID]:
    at, last = values
    return datetime.fromisoformat(at).astimezone(UTC), uuid.UUID(last)


def parse_offset(values: Any) -> int:
    (offset,) = values
    if type(offset) is not int or not 0 <= offset < 2**53:
        raise ValueError(offset)
    return offset
