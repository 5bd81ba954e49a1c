"""The tables of an archive - CSV or JSON lines - as exact text: UTF-8, a header line, no guessing (C1, C3-C5).

Labels stay what was written: `NA`, `null`, `01` and an emoji are class names. Which column means what, and whether
the files exist, is `layout`'s business.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from app.errors import ArchiveRejected, Fault, shown

LINE_BYTES = 64 << 10
LABEL_CHARS = 200


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; `rows` carries each row's line number, as an editor shows it."""

    path: str
    columns: tuple[str, ...]
    rows: list[tuple[int, Sequence[str]]]


def parse(path: str, data: bytes) -> Table:
    """Raises ArchiveRejected (bad_encoding, bad_table, table_too_large) naming line and column."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _rejected(path, "bad_encoding", "the table is not UTF-8", line) from None
    if "\0" in text:
        raise _rejected(path, "bad_table", "the table has a NUL character", text.count("\n", 0, text.index("\0")) + 1)
    if len(data) > LINE_BYTES:
        for number, raw in enumerate(data.split(b"\n"), 1):
            if len(raw) > LINE_BYTES:
                raise _rejected(path, "table_too_large", f"a line has more than {LINE_BYTES} bytes", number, status=413)
    table = _jsonl(path, text) if path.lower().endswith(".jsonl") else _csv(path, text)
    if not table.rows:
        raise _rejected(path, "bad_table", "the table has no rows")
    return table


def label(table: Table, line: int, column: str, text: str) -> str:
    """A class name, exactly as written; raises ArchiveRejected for what cannot be one."""
    if not text:
        fail(table, line, "empty_label", f"column {shown(column)!r} is empty")
    if len(text) > LABEL_CHARS:
        fail(table, line, "bad_label", f"a label in column {shown(column)!r} is longer than {LABEL_CHARS} characters")
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        fail(table, line, "bad_label", f"the label {shown(text)!r} has a control character")
    return text


def fail(table: Table, line: int, code: str, detail: str) -> NoReturn:
    raise _rejected(table.path, code, detail, line)


def _csv(path: str, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, Sequence[str]]] = []
    columns: tuple[str, ...] | None = None
    try:
        for row in reader:
            if columns is None:
                columns = _columns(path, [name.strip() for name in row])
            elif row:
                if len(row) != len(columns):
                    raise _rejected(
                        path, "ragged_row", f"{len(row)} fields under {len(columns)} columns", reader.line_num
                    )
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise _rejected(path, "bad_table", f"the table cannot be read: {error}", reader.line_num) from None
    if columns is None:
        raise _rejected(path, "bad_table", "the table is empty")
    return Table(path, columns, rows)


def _columns(path: str, names: Sequence[str]) -> tuple[str, ...]:
    if "" in names:
        raise _rejected(path, "bad_columns", f"column {list(names).index('') + 1} has no name", 1)
    double = next((name for position, name in enumerate(names) if name in names[:position]), None)
    if double is not None:
        raise _rejected(path, "bad_columns", f"column {shown(double)!r} appears twice", 1)
    return tuple(names)


def _jsonl(path: str, text: str) -> Table:
    """One flat object a line; its first line names the columns."""
    rows: list[tuple[int, Sequence[str]]] = []
    columns: tuple[str, ...] | None = None
    for line, fields in _objects(path, text):
        if columns is None:
            columns = _columns(path, list(fields))
        if fields.keys() != set(columns):
            raise _rejected(path, "ragged_row", "the keys differ from those of the first line", line)
        rows.append((line, [fields[name] for name in columns]))
    if columns is None:
        raise _rejected(path, "bad_table", "the table is empty")
    return Table(path, columns, rows)


def _objects(path: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            found = json.loads(raw, object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise _rejected(path, "bad_table", f"the line is not JSON: {shown(error)}", line) from None
        if not isinstance(found, dict):
            raise _rejected(path, "bad_table", "the line is not a JSON object", line)
        yield line, {key: _text(value) for key, value in found.items()}


def _text(value: object) -> str:
    """Text as it is, integers as written, anything else as JSON: such a column can be carried, hardly learned from."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rejected(path: str, code: str, detail: str, line: int | None = None, status: int | None = None) -> ArchiveRejected:
    where = f"{shown(path)}, line {line}" if line else shown(path)
    problem = ArchiveRejected(f"{where}: {detail}", code=code, status=status)
    problem.errors = [Fault(where, code, detail)]
    return problem
