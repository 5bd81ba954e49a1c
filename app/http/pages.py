"""Pages of collections. A cursor names the last item of a page, so new items do not shift the pages after it."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from app.errors import Fault, InvalidRequest, Problem
from app.http import json_text

MOST_ITEMS = 200  # of one page
Element = TypeVar("Element")
Source = TypeVar("Source")


class Page(BaseModel, Generic[Element]):
    """One page of a collection; `next_cursor` is null on the last one."""

    items: list[Element]
    next_cursor: str | None


class PageParams(NamedTuple):
    """The query parameters of every collection."""

    limit: int
    cursor: str | None


async def _page_params(
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS, description="Most items of one page")] = 50,
    cursor: Annotated[str | None, Query(max_length=400, description="`next_cursor` of the page before")] = None,
) -> PageParams:
    return PageParams(limit, cursor)


Paging = Annotated[PageParams, Depends(_page_params)]


def newest_page(
    session: Session, statement: Select[Source], table: Any, params: PageParams
) -> tuple[list[Source], str | None]:
    """One page of the rows that a query selects, newest first, and the cursor of the next page.

    Args:
        statement: Selects whole rows of `table`; it must not be ordered.
        table: A table with the columns `created_at` and `id`.
        params: Size of the page, and the cursor after which it starts.

    Raises:
        InvalidRequest: The cursor is not one of this collection.
    """
    if params.cursor is not None:
        at, last = decode(params.cursor, parse_time_and_id)
        statement = statement.where(or_(table.created_at < at, and_(table.created_at == at, table.id < last)))
    statement = statement.order_by(table.created_at.desc(), table.id.desc()).limit(params.limit + 1)
    rows = list(session.scalars(statement))
    return cut_page(rows, params, lambda row: [row.created_at.isoformat(), str(row.id)])  # type: ignore[attr-defined]


def slice_page(items: Sequence[Source], params: PageParams) -> tuple[list[Source], str | None]:
    """One page of a list whose order never changes, and the cursor of the next page; raises as `newest_page` does."""
    start = page_start(params, 0)
    end = start + params.limit
    return list(items[start:end]), encode([end]) if end < len(items) else None


def cut_page(
    rows: Sequence[Source], params: PageParams, position: Callable[[Source], list[Any]]
) -> tuple[list[Source], str | None]:
    """One page of rows, and the cursor of the next page.

    Args:
        rows: The rows after the cursor: one more than `params.limit` if there are as many.
        position: What the cursor says of the last row of the page.
    """
    page = list(rows[: params.limit])
    return page, encode(position(page[-1])) if len(rows) > len(page) else None


def page_start(params: PageParams, start: int) -> int:
    """The offset or number at which the page before ended, `start` for the first page; raises as `newest_page` does."""
    offset: int = decode(params.cursor, parse_offset) if params.cursor is not None else start
    return offset


def encode(values: list[Any]) -> str:
    """A cursor that holds these values."""
    return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, parse: Any) -> Any:
    """The values in a cursor.

    Args:
        parse: Checks and converts the values that `encode` was called with; raises ValueError, TypeError or
            OverflowError for others. It gets only what a database can store: the text is read as that of a body is.

    Raises:
        InvalidRequest: It is no cursor, or `parse` refused its values.
    """
    try:
        return parse(json_text.parse(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (Problem, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        detail = "Not a cursor of this collection."
        raise InvalidRequest(detail, errors=[Fault("/query/cursor", "cursor", detail)]) from None


def parse_time_and_id(values: Any) -> tuple[datetime, uuid.UUID]:
    """The values of a cursor of `newest_page`; ValueError or TypeError for others."""
    at, last = values
    return datetime.fromisoformat(at).astimezone(UTC), uuid.UUID(last)


def parse_offset(values: Any) -> int:
    """The value of a cursor of `slice_page`, or of `cut_page` with one number; ValueError or TypeError for others."""
    (offset,) = values
    if type(offset) is not int or not 0 <= offset < 2**53:
        raise ValueError(offset)
    return offset
