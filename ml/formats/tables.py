"""A table of labels - CSV, TSV or JSON lines - as exact text (C1, C3-C5).

The encoding (UTF-8, UTF-16) and the separator (comma, semicolon, tab) are recognised. Labels stay what was written:
`NA`, `null`, `01` and an emoji are class names. Which column means what is decided by `label_tables`.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ml.formats.entries import DEFAULT_LIMITS
from ml.formats.errors import DatasetFormatError, printable

LINE_BYTES = 64 << 10
LABEL_CHARS = 200
SEPARATORS = ",;\t"
SAMPLE_COLUMNS = 50  # of a table that is refused: how much of it the refusal repeats
SAMPLE_CHARS = 100


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        path: Its name in the container.
        columns: Names of its columns, each once.
        rows: Line number, as an editor counts, and the values in the order of the columns.
        unit: What is counted instead of lines, where it is not read from lines.
    """

    path: str
    columns: tuple[str, ...]
    rows: list[tuple[int, Sequence[str]]]
    unit: str = "line"

    def place(self, line: int) -> str:
        """Where a row is, for messages."""
        return f"{printable(self.path)}, {self.unit} {line}"

    def sample_row(self) -> Mapping[str, str]:
        """The first row by column, each value cut to `SAMPLE_CHARS` characters."""
        values = self.rows[0][1] if self.rows else ()
        return {
            printable(name, SAMPLE_CHARS): printable(value, SAMPLE_CHARS)
            for name, value in zip(self.columns[:SAMPLE_COLUMNS], values, strict=False)
        }

    def reject_columns(self, code: str, detail: str) -> NoReturn:
        """Refuse the table, naming its columns and its first row so that the user can choose a column.

        Raises:
            DatasetFormatError: Always.
        """
        columns = [printable(name, SAMPLE_CHARS) for name in self.columns[:SAMPLE_COLUMNS]]
        raise DatasetFormatError(code, detail, self.path, columns=columns, sample_row=self.sample_row())

    def reject_line(self, code: str, line: int, detail: str) -> NoReturn:
        """Refuse the table because of one line.

        Raises:
            DatasetFormatError: Always.
        """
        place = self.place(line)
        raise DatasetFormatError(code, f"{place}: {detail}", place)


def parse(path: str, data: bytes, max_rows: int = DEFAULT_LIMITS.table_rows) -> Table:
    """Read a table.

    Args:
        path: Its name: what ends in `.jsonl` is JSON lines, anything else has a header line and separated values.
        data: Its bytes, in UTF-8 or UTF-16, with or without a byte order mark.
        max_rows: With more rows it is refused.

    Raises:
        DatasetFormatError: bad_encoding, bad_table, bad_columns, ragged_row, table_too_large; it names the line.
    """
    text = _decode(path, data)
    if "\0" in text:
        raise _error("bad_table", path, "the table has a NUL character", text.count("\n", 0, text.index("\0")) + 1)
    if (number := _long_line(text.encode())) is not None:
        raise _error("table_too_large", path, f"a line has more than {LINE_BYTES} bytes", number)
    is_json = path.lower().endswith(".jsonl")
    table = _parse_json_lines(path, text, max_rows) if is_json else _parse_csv(path, text, max_rows)
    if not table.rows:
        raise _error("bad_table", path, "the table has no rows")
    return table


def check_label(text: str) -> str | None:
    """Why a text cannot be the name of a class, or None where it can."""
    if len(text) > LABEL_CHARS:
        return f"the label {printable(text, 60)!r} is longer than {LABEL_CHARS} characters"
    if not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        return f"the label {printable(text)!r} has a control character"
    return None


def _decode(path: str, data: bytes) -> str:
    """Text in UTF-8 or UTF-16. Without a mark, a zero as first or second byte is half of a character of UTF-16."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(data) > 1 and 0 in data[:2] and data[:2] != b"\0\0":
        encoding = "utf-16-le" if data[1] == 0 else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _error("bad_encoding", path, "the table is neither UTF-8 nor UTF-16", line) from None


def _long_line(data: bytes) -> int | None:
    """The number of a line of more than `LINE_BYTES` bytes, if there is one; makes no list of all lines."""
    start = 0
    while len(data) - start > LINE_BYTES:
        end = data.rfind(b"\n", start, start + LINE_BYTES + 1)
        if end < 0:
            return data.count(b"\n", 0, start) + 1
        start = end + 1
    return None


def _parse_csv(path: str, text: str, max_rows: int) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    rows: list[tuple[int, Sequence[str]]] = []
    columns: tuple[str, ...] | None = None
    try:
        for row in reader:
            if columns is None:
                columns = _check_columns(path, [name.strip() for name in row])
            elif row:
                if len(row) != len(columns):
                    detail = f"{len(row)} fields under {len(columns)} columns"
                    raise _error("ragged_row", path, detail, reader.line_num)
                if len(rows) == max_rows:
                    raise _too_many_rows(path, max_rows)
                rows.append((reader.line_num, row))
    except csv.Error as error:
        raise _error("bad_table", path, f"the table cannot be read: {printable(error)}", reader.line_num) from None
    if columns is None:
        raise _error("bad_table", path, "the table is empty")
    return Table(path, columns, rows)


def _separator(text: str) -> str:
    """The separator that makes most columns of the header line; a comma where none does."""
    header = text[:LINE_BYTES].lstrip("\r\n").partition("\n")[0]

    def columns(separator: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=separator), ()))
        except csv.Error:
            return 0

    return max(SEPARATORS, key=columns)


def _check_columns(path: str, names: Sequence[str]) -> tuple[str, ...]:
    if "" in names[1:]:  # the first one may be the index that pandas writes
        raise _error("bad_columns", path, f"column {names.index('', 1) + 1} has no name", 1)
    known: set[str] = set()
    for number, name in enumerate(names, 1):
        if name in known:
            raise _error("bad_columns", path, f"column {printable(name)!r} appears twice", 1)
        if not name.isprintable() and any(c == "\0" or unicodedata.category(c) == "Cs" for c in name):
            raise _error("bad_columns", path, f"the name of column {number}, {printable(name)!r}, is no text", 1)
        known.add(name)
    return tuple(names)


def _parse_json_lines(path: str, text: str, max_rows: int) -> Table:
    """One flat object a line; its first line names the columns."""
    rows: list[tuple[int, Sequence[str]]] = []
    columns: tuple[str, ...] | None = None
    for line, fields in _objects(path, text):
        if columns is None:
            columns = _check_columns(path, list(fields))
        if fields.keys() != set(columns):
            raise _error("ragged_row", path, "the keys differ from those of the first line", line)
        if len(rows) == max_rows:
            raise _too_many_rows(path, max_rows)
        rows.append((line, [fields[name] for name in columns]))
    if columns is None:
        raise _error("bad_table", path, "the table is empty")
    return Table(path, columns, rows)


def _objects(path: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and object of each line that is not blank."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    number, start = 1, 0
    for match in re.finditer(r"[^\n]+", text):
        number += text.count("\n", start, match.start())
        start, line = match.start(), match[0]
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise _error("bad_table", path, f"the line is not JSON: {printable(error)}", number) from None
        if not isinstance(value, dict):
            raise _error("bad_table", path, "the line is not a JSON object", number)
        yield number, {key: as_text(item) for key, item in value.items()}


def as_text(value: object) -> str:
    """Text as it is, null as an empty value, integers as written, anything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _too_many_rows(path: str, max_rows: int) -> DatasetFormatError:
    return _error("table_too_large", path, f"the table has more than {max_rows} rows")


def _error(code: str, path: str, detail: str, line: int | None = None) -> DatasetFormatError:
    location = f"{printable(path)}, line {line}" if line else printable(path)
    return DatasetFormatError(code, f"{location}: {detail}", location)
