"""Which of an archive's tables labels the images, and which of its columns means what (Z8, C1, C2, C6).

By name first (train.csv + test.csv, labels.csv, metadata.csv, images.csv), else the only table that can. Where two
readings are possible the upload is refused with the columns it has and the field that decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from app.datasets import tables
from app.datasets.archive import Archive, is_table
from app.datasets.entries import Entry
from app.datasets.rows import SPLITS, Finding, Row, listed, reject
from app.datasets.tables import Table
from app.errors import ArchiveRejected, shown

PATH_COLUMNS = ("file", "file_name", "path")
KNOWN_TABLES = ("labels", "metadata", "images")


@dataclass(frozen=True)
class Columns:
    """What the request says about the tables."""

    label: str | None = None
    clean: str | None = None


class LabelTable(NamedTuple):
    """A table with the meaning of its columns. `split` is fixed by its name, or None: by column or folder."""

    table: Table
    split: str | None
    file: str
    label: str | None
    clean: str | None

    def rows(self, images: dict[str, Entry], asked: Columns, findings: list[Finding]) -> list[Row]:
        at = {name: position for position, name in enumerate(self.table.columns)}
        file, label, clean = at[self.file], at.get(self.label or ""), at.get(self.clean or "")
        split = at.get("split") if self.split is None else None
        home, *elsewhere = self._places()
        known: set[str] = set()  # labels already checked
        found = []
        for line, fields in self.table.rows:
            path = fields[file]
            entry = images.get(home + path)  # a name found as it stands needs no other check
            if entry is None:
                path = _safe(self.table, line, path)
                entry = next((images[place + path] for place in (home, *elsewhere) if place + path in images), None)
            if entry is None:
                detail = f"{shown(self.table.path)}, line {line}: no such image in the archive"
                findings.append(Finding(shown(path), "unknown_file", detail, "warning"))
                continue
            given = None if label is None else fields[label]
            if given is not None and given not in known:
                known.add(tables.label(self.table, line, self.label or "", given))
            truth = (fields[clean] or None) if clean is not None else None
            if truth is not None and truth not in known:
                known.add(tables.label(self.table, line, self.clean or "", truth))
            found.append(Row(entry, self._split(line, fields, split, path), given, truth))
        return found

    def _split(self, line: int, fields: Sequence[str], column: int | None, path: str) -> str:
        if self.split is not None:
            return self.split
        if column is None:
            return next((SPLITS[part] for part in path.lower().split("/")[:-1] if part in SPLITS), "train")
        if (name := SPLITS.get(fields[column].lower())) is None:
            tables.fail(self.table, line, "bad_split", f"split is {shown(fields[column])!r}, not train, test or val")
        return name

    def _places(self) -> list[str]:
        """Where the paths of a table may start: its folder, images/ or its split below that, the archive's root."""
        home = self.table.path.rpartition("/")[0]
        home = f"{home}/" if home else ""
        stem = _stem(self.table.path)
        return list(dict.fromkeys((home, f"{home}images/", f"{home}{stem}/", "")))


def choose(
    archive: Archive, images: dict[str, Entry], others: dict[str, Entry], asked: Columns, findings: list[Finding]
) -> list[LabelTable]:
    """The tables that label the images: by name, else the only one that can."""
    candidates = [entry for path, entry in others.items() if is_table(path)]
    depth = min((entry.path.count("/") for entry in candidates), default=0)
    split_tables = [e for e in candidates if _table_split(e.path) and e.path.count("/") <= depth + 1]
    known = [e for e in candidates if _stem(e.path) in KNOWN_TABLES and e.path.count("/") == depth]
    chosen: list[Entry] = []
    if any(_table_split(entry.path) == "train" for entry in split_tables):
        chosen = split_tables
    elif known:
        chosen = sorted(known, key=lambda e: KNOWN_TABLES.index(_stem(e.path)))[:1]
    parsed = {entry.path: tables.parse(entry.path, archive.content(entry)) for entry in chosen}
    if not chosen:
        parsed = _usable(archive, [e for e in candidates if e.path.count("/") == depth], images, asked)
        chosen = [others[path] for path in parsed]
    if len(chosen) > 1 and not all(_table_split(entry.path) for entry in chosen):
        names = listed(entry.path for entry in chosen)
        reject("ambiguous_layout", f"{names} could each hold the labels; name the right one labels.csv")
    if chosen and not images:
        reject("no_images", "the archive holds a table but no images")
    findings.extend(
        Finding(entry.path, "other_table", "not the table of labels; not used", "ignored")
        for entry in candidates
        if entry.path not in parsed
    )
    named = [(parsed[e.path], _table_split(e.path)) for e in chosen]
    named.sort(key=lambda pair: (pair[1] != "train", pair[0].path))
    return [_meaning(table, split, asked, first=position == 0) for position, (table, split) in enumerate(named)]


def _usable(
    archive: Archive, candidates: Sequence[Entry], images: dict[str, Entry], asked: Columns
) -> dict[str, Table]:
    """Tables of other names that have a path column and a column to learn from."""
    usable: dict[str, Table] = {}
    unclear: dict[str, Table] = {}
    errors: list[ArchiveRejected] = []
    for entry in candidates:
        try:
            table = tables.parse(entry.path, archive.content(entry))
        except ArchiveRejected as error:
            errors.append(error)  # perhaps a table of something else: it counts only where labels are missing
            continue
        if any(name in table.columns for name in PATH_COLUMNS):
            (usable if _label_column(table, asked) else unclear)[entry.path] = table
    if not usable and (asked.label or len({path.rpartition("/")[0] for path in images}) < 2):
        if len(unclear) == 1:
            return unclear  # refused by `_meaning`, which names the columns
        if errors and not unclear:
            raise errors[0]
    return usable


def _table_split(path: str) -> str | None:
    """train.csv, test.csv - or train/metadata.csv, as Hugging Face's imagefolder has it."""
    folder, _, _ = path.rpartition("/")
    if _stem(path) == "metadata" and (parent := folder.rpartition("/")[2].lower()) in SPLITS:
        return SPLITS[parent]
    return SPLITS.get(_stem(path))


def _stem(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[0].lower()


def _label_column(table: Table, asked: Columns) -> str | None:
    if asked.label is not None:
        return asked.label if asked.label in table.columns else None
    if "label" in table.columns:
        return "label"
    others = [name for name in table.columns if name not in (*PATH_COLUMNS, asked.clean, "split")]
    return others[0] if len(others) == 1 else None


def _meaning(table: Table, split: str | None, asked: Columns, *, first: bool) -> LabelTable:
    """Which column is the path, which the given label, which the truth. Only the first table must have labels:
    a test set may carry the truth alone."""
    named = listed(table.columns)
    file = next((name for name in PATH_COLUMNS if name in table.columns), None)
    if file is None:
        reject("bad_columns", f"{shown(table.path)} has no column file, file_name or path; it has {named}", table.path)
    label = _label_column(table, asked)
    clean = asked.clean if asked.clean in table.columns else None
    if asked.clean and clean is None and first:
        reject(
            "unknown_column", f"{shown(table.path)} has no column {shown(asked.clean)!r}; it has {named}", table.path
        )
    if label is None and not first and clean is None:
        label = _label_column(table, Columns(None, asked.clean))
    if label is None and (first or clean is None):
        if asked.label is not None:
            hint = "" if first else "; name the truth with clean_column"
            detail = f"{shown(table.path)} has no column {shown(asked.label)!r}; it has {named}{hint}"
            reject("unknown_column", detail, table.path)
        detail = f"{shown(table.path)} has the columns {named}; say which to learn from with label_column"
        reject("ambiguous_label_column", detail, table.path)
    return LabelTable(table, split, file, label, clean)


def _safe(table: Table, line: int, path: str) -> str:
    """A path inside the archive (C6): it only ever looks up a name, but a URL or `..` is a mistake worth naming."""
    path = path.removeprefix("./")
    if not path:
        tables.fail(table, line, "empty_path", "the path is empty")
    if (
        path[0] == "/"
        or "\\" in path
        or path[1:2] == ":"
        or "://" in path
        or (".." in path and ".." in path.split("/"))
    ):
        tables.fail(table, line, "unsafe_path", f"{shown(path)!r} is not a path inside the archive")
    return path
