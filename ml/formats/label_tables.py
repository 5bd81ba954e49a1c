"""Which of a container's tables labels the images, and which of its columns means what (Z8, C1, C2, C6).

A table is chosen by name first (train.csv with test.csv, then labels, metadata, images), else the only one that fits.
Where two readings are possible the data set is refused, with the columns it has and the option that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ml.formats import annotation_files, csv_cells
from ml.formats.archive import is_annotation, is_table
from ml.formats.container import Container
from ml.formats.entries import Entry, check_table_bytes
from ml.formats.entry_names import fold
from ml.formats.errors import DatasetFormatError, name_list, printable
from ml.formats.records import SPLITS, LabeledEntry, ReportLine, reject
from ml.formats.table_columns import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SAMPLE_ROWS,
    SPLIT_COLUMN,
    UPLOADED_COLUMN,
    ColumnNames,
    base_folders,
    find_column,
    find_label_column,
    find_path_column,
    has_annotators,
    stem,
)
from ml.formats.tables import Table, check_label, parse
from ml.formats.votes import CONSENSUS, majority

TABLE_NAMES = ("labels", "metadata", "images")
UNLABELED_FRACTION = 0.10  # of a table's rows; with more, the table is not what it seems


class LabelTable(NamedTuple):
    """A table with the positions of its columns.

    Args:
        table: The table.
        split: Of all its images, by the name of the table; None where a column or the folders tell.
        path: Position of the column of paths.
        label: Position of the column of given labels, if there is one.
        clean: Position of the column of clean labels, if there is one.
        split_column: Position of the column `split`, if there is one and `split` is None.
        annotators: Positions of the columns of votes; None for an annotator that the table does not have.
        by_consensus: Whether the given label is the majority of the votes.
    """

    table: Table
    split: str | None
    path: int
    label: int | None
    clean: int | None
    split_column: int | None
    annotators: tuple[int | None, ...] = ()
    by_consensus: bool = False

    def read(
        self,
        images: Mapping[str, Entry],
        report: list[ReportLine],
        votes_by_path: dict[str, tuple[str | None, ...]],
    ) -> list[LabeledEntry]:
        """The images that the table labels, in its order.

        Args:
            images: Files by path.
            report: Gets a line for each row without an image or without a label.
            votes_by_path: Gets the votes of each image that has any.

        Raises:
            DatasetFormatError: empty_path, unsafe_path, bad_label, bad_split; conflicting_labels where the votes of an
                image differ between rows; empty_label where more than `UNLABELED_FRACTION` of the rows have none.
        """
        find_image = self._image_finder(images)
        checked: set[str | None] = {None}  # labels that passed
        unlabeled: list[int] = []
        entries = []
        for line, fields in self.table.rows:
            entry = find_image(line, fields[self.path])
            if entry is None:
                detail = f"{self.table.place(line)}: no such image in the archive"
                report.append(ReportLine(printable(fields[self.path]), "unknown_file", detail, "warning"))
                continue
            given = None if self.label is None else _value(fields[self.label])
            clean = None if self.clean is None else _value(fields[self.clean])
            votes = tuple([None if at is None else _value(fields[at]) for at in self.annotators])
            if any(votes) and votes_by_path.setdefault(entry.path, votes) != votes:
                self.table.reject_line("conflicting_labels", line, f"{printable(entry.path)!r} has other votes above")
            given = majority(votes) if self.by_consensus else given
            for label in (given, clean, *votes):
                if label not in checked:
                    self._check_label(line, label or "")
                    checked.add(label)
            split = self.split or self._split(line, fields, entry.path)
            # A row to learn from needs a given label; one to test on may have the clean label alone.
            is_labeled = self.label is not None or self.by_consensus
            if given is None and (clean is None or (is_labeled and split == "train")):
                unlabeled.append(line)
                detail = f"{self.table.place(line)}: no label"
                report.append(ReportLine(entry.path, "unlabelled_row", detail, "excluded"))
                continue
            entries.append(LabeledEntry(entry, split, given, clean))
        if (self.label is not None or self.by_consensus) and len(unlabeled) > UNLABELED_FRACTION * len(self.table.rows):
            column = "the columns of annotators"
            if self.label is not None:
                column = f"the column {printable(self.table.columns[self.label], 60)!r}"
            detail = (
                f"{len(unlabeled)} of {len(self.table.rows)} rows have no label in {column};"
                f" at most {UNLABELED_FRACTION:.0%} may"
            )
            self.table.reject_line("empty_label", unlabeled[0], detail)
        return entries

    def is_named_label(self) -> bool:
        """Whether the name of the table or of its column says that it holds labels."""
        column = None if self.label is None else self.table.columns[self.label].casefold()
        return column in LABEL_COLUMNS or stem(self.table.path) in ("labels", *SPLITS)

    def _image_finder(self, images: Mapping[str, Entry]) -> Callable[[int, str], Entry | None]:
        """A function from a line and its path to the image: as it stands, then from each folder it may start in."""
        first, *others = base_folders(self.table.path)

        def find(line: int, path: str) -> Entry | None:
            if (entry := images.get(first + path)) is not None:
                return entry  # a name that exists needs no other check
            path = _check_path(self.table, line, annotation_files.local_path(path))
            return next((images[base + path] for base in (first, *others) if base + path in images), None)

        return find

    def find_other_case(self, images: Mapping[str, Entry]) -> tuple[str, str] | None:
        """The first path that names an image in other letters, small for capital, and that image; None without one."""
        by_folded = {fold(path): path for path in images}
        bases = base_folders(self.table.path)
        paths = [fields[self.path].removeprefix("./") for _, fields in self.table.rows[:SAMPLE_ROWS]]
        pairs = ((path, by_folded.get(fold(base + path))) for path in paths for base in bases)
        return next(((path, image) for path, image in pairs if image is not None), None)

    def _split(self, line: int, fields: Sequence[str], path: str) -> str:
        """The split of a row, by its column or else by the folders of its image."""
        if self.split_column is None:
            return next((SPLITS[part] for part in path.lower().split("/")[:-1] if part in SPLITS), "train")
        value = fields[self.split_column]
        if (split := SPLITS.get(value.strip().lower())) is None:
            self.table.reject_line("bad_split", line, f"split is {printable(value)!r}, not train, test or val")
        return split

    def _check_label(self, line: int, label: str) -> None:
        if (fault := check_label(label)) is not None:
            self.table.reject_line("bad_label", line, fault)


def is_exported(table: Table) -> bool:
    """Whether it is of an export: labels may have been corrected since, while folders still show what was uploaded."""
    return UPLOADED_COLUMN in table.columns


def choose_tables(
    container: Container,
    images: Mapping[str, Entry],
    files: Mapping[str, Entry],
    columns: ColumnNames,
    report: list[ReportLine],
) -> list[LabelTable]:
    """The tables that label the images; none where the folders do.

    Args:
        container: The data set.
        images: Its images by path.
        files: Its other files by path.
        columns: The columns that the user named.
        report: Gets a line for each table that is not used.

    Raises:
        DatasetFormatError: ambiguous_layout, ambiguous_label_column, unknown_column, bad_columns, no_images, and what
            `tables.parse` raises.
    """
    candidates = [entry for path, entry in files.items() if is_table(path)]
    depth = min((entry.path.count("/") for entry in candidates), default=0)

    # By name: a pair of splits, else the first of the usual names.
    of_splits = [e for e in candidates if _table_split(e.path) and e.path.count("/") <= depth + 1]
    named = [e for e in candidates if stem(e.path) in TABLE_NAMES and e.path.count("/") == depth]
    chosen: list[Entry] = []
    if any(_table_split(entry.path) == "train" for entry in of_splits):
        chosen = of_splits
    elif named:
        chosen = sorted(named, key=lambda e: TABLE_NAMES.index(stem(e.path)))[:1]
    check_table_bytes(chosen, container.limits)
    parsed = {entry.path: _parse(container, entry) for entry in chosen}

    # By content: the only table with a column of paths and one of labels.
    if candidates and not parsed:
        highest = [entry for entry in candidates if entry.path.count("/") == depth]
        check_table_bytes(highest, container.limits)
        parsed = _parse_usable(container, highest, images, columns)
    splits = {path: _table_split(path) for path in parsed}

    # No such table: annotations as other programs write them.
    if images and not parsed:
        parsed = _read_annotations(container, images, files, columns)
        splits = {path: annotation_files.document_split(path) for path in parsed}
    _check_one_table(splits)
    if parsed and not images:
        reject("no_images", "the archive holds a table but no images")
    report.extend(
        ReportLine(entry.path, "other_table", "not the table of labels; not used", "ignored")
        for entry in candidates
        if entry.path not in parsed
    )

    # Train tables first: only those must have the columns that the user named.
    paths = sorted(parsed, key=lambda path: (splits[path] != "train", path))
    return [
        _find_columns(parsed[path], splits[path], images, columns, is_first=position == 0)
        for position, path in enumerate(paths)
    ]


def _read_annotations(
    container: Container, images: Mapping[str, Entry], files: Mapping[str, Entry], columns: ColumnNames
) -> dict[str, Table]:
    """Documents of COCO or Label Studio that label images of the container, else the samples of a WebDataset."""
    if not any(map(is_annotation, files)):
        return {}
    documents = annotation_files.read_documents(container, images, files, container.limits.table_rows)

    def is_usable(table: Table) -> bool:
        path = find_path_column(table, images, columns)
        if path is None or not (has_annotators(table, columns) or find_label_column(table, path, columns) is not None):
            return False
        bases = base_folders(table.path)
        sample = [
            annotation_files.local_path(fields[path]).removeprefix("./") for _, fields in table.rows[:SAMPLE_ROWS]
        ]
        return any(base + name in images for name in sample for base in bases)

    usable = {path: table for path, table in documents.items() if is_usable(table)}
    if usable:
        return usable
    if (samples := annotation_files.read_samples(container, images, files, container.limits.table_rows)) is not None:
        return {samples.path: samples}
    has_folders = len({path.rpartition("/")[0] for path in images}) > 1
    return {} if has_folders else dict(list(documents.items())[:1])  # refused by what follows, which says why


def _parse(container: Container, entry: Entry) -> Table:
    table = parse(entry.path, container.content(entry), container.limits.table_rows)
    if is_exported(table) and not entry.path.lower().endswith(".jsonl"):
        return replace(table, rows=[(line, list(map(csv_cells.unescape, fields))) for line, fields in table.rows])
    return table


def _check_one_table(splits: Mapping[str, str | None]) -> None:
    """Refuse several tables, by path, of which one has no split."""
    if len(splits) > 1 and not all(splits.values()):
        paths = list(splits)
        detail = f"{name_list(paths)} could each hold the labels; name the right one labels.csv"
        reject("ambiguous_layout", detail)


def _parse_usable(
    container: Container, candidates: Sequence[Entry], images: Mapping[str, Entry], columns: ColumnNames
) -> dict[str, Table]:
    """Tables of other names that have a column of paths and a column to learn from."""
    usable: dict[str, Table] = {}
    unclear: dict[str, Table] = {}  # at most two: there may be very many tables of something else
    errors: list[DatasetFormatError] = []
    for entry in candidates:
        try:
            table = _parse(container, entry)
        except DatasetFormatError as error:
            errors = errors or [error]  # perhaps a table of something else: it counts only where labels are missing
            continue
        path = find_path_column(table, images, columns)
        if path is not None:
            if has_annotators(table, columns) or find_label_column(table, path, columns) is not None:
                usable[entry.path] = table
                _check_one_table({name: _table_split(name) for name in usable})
            elif len(unclear) < 2:
                unclear[entry.path] = table
        elif len(candidates) == 1:
            unclear[entry.path] = table
    if not usable and (columns.label or columns.path or len({path.rpartition("/")[0] for path in images}) < 2):
        if len(unclear) == 1:
            return unclear  # refused by `_find_columns`, which names the columns
        if errors and not unclear:
            raise errors[0]
    return usable


def _find_columns(
    table: Table, split: str | None, images: Mapping[str, Entry], columns: ColumnNames, *, is_first: bool
) -> LabelTable:
    """The columns of a table. Only the first table must have labels: a test set may have the clean ones alone."""
    names = name_list(table.columns)
    where = printable(table.path)

    # The column of paths.
    path = find_path_column(table, images, columns)
    if path is None:
        if columns.path is not None:
            detail = f"{where} has no column {printable(columns.path)!r}; it has {names}"
            table.reject_columns("unknown_column", detail)
        usual = f"{', '.join(PATH_COLUMNS[:-1])} or {PATH_COLUMNS[-1]}"
        detail = f"{where} has no column {usual}; it has {names}; name the one with the paths by path_column"
        table.reject_columns("bad_columns", detail)

    # The columns of annotators: all of them in the first table, those that are there in others.
    annotators = tuple(find_column(table, name) for name in columns.annotators)
    for name, at in zip(columns.annotators, annotators, strict=True):
        if at is None and is_first:
            table.reject_columns("unknown_column", f"{where} has no column {printable(name)!r}; it has {names}")
    by_consensus = any(at is not None for at in annotators) and (
        columns.label is None or (columns.label == CONSENSUS and find_column(table, columns.label) is None)
    )

    # The column of clean labels, then that of given labels.
    clean = find_column(table, columns.clean)
    if columns.clean is not None and clean is None and is_first:
        table.reject_columns("unknown_column", f"{where} has no column {printable(columns.clean)!r}; it has {names}")
    label = None if by_consensus else find_label_column(table, path, columns)
    if label is None and not is_first and clean is None and not by_consensus:
        label = find_label_column(table, path, ColumnNames(columns.path, None, columns.clean))
    if label is None and (is_first or clean is None) and not by_consensus:
        if columns.label is not None:
            hint = "" if is_first else "; name the column of true labels by clean_column"
            detail = f"{where} has no column {printable(columns.label)!r}; it has {names}{hint}"
            table.reject_columns("unknown_column", detail)
        detail = f"{where} has the columns {names}; name the one to learn from by label_column"
        table.reject_columns("ambiguous_label_column", detail)
    split_column = None if split else find_column(table, SPLIT_COLUMN)
    return LabelTable(table, split, path, label, clean, split_column, annotators, by_consensus)


def _value(cell: str) -> str | None:
    """What a cell holds, exactly as written; None for an empty one."""
    return cell if cell and not cell.isspace() else None


def _table_split(path: str) -> str | None:
    """The split of train.csv or test.csv - or of train/metadata.csv, as Hugging Face's imagefolder has it."""
    folder, _, _ = path.rpartition("/")
    if stem(path) == "metadata" and (parent := folder.rpartition("/")[2].lower()) in SPLITS:
        return SPLITS[parent]
    return SPLITS.get(stem(path))


def _check_path(table: Table, line: int, path: str) -> str:
    """A path inside the container (C6). It only ever looks up a name, but a URL or `..` is a mistake worth naming."""
    path = path.removeprefix("./")
    if not path:
        table.reject_line("empty_path", line, "the path is empty")
    if (
        path[0] == "/"
        or "\\" in path
        or path[1:2] == ":"
        or "://" in path
        or (".." in path and ".." in path.split("/"))
    ):
        table.reject_line("unsafe_path", line, f"{printable(path)!r} is not a path inside the archive")
    return path
