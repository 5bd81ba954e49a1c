"""Which column of a table holds the paths of the images, the given labels and the clean labels (C1).

Names are compared without case. A column that the user named goes before the usual names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ml.formats.entries import Entry
from ml.formats.tables import Table

PATH_COLUMNS = ("file", "file_name", "filename", "path", "image_path", "image")
LABEL_COLUMNS = ("label", "class", "category", "target", "given", "choice")
SPLIT_COLUMN = "split"
UPLOADED_COLUMN = "uploaded_label"  # of a table that was exported: the label before it was corrected
SAMPLE_ROWS = 20  # looked at to tell a column of paths from one of something else


@dataclass(frozen=True)
class ColumnNames:
    """The columns that the user named; None leaves the choice to the rules.

    Args:
        path: The column with the paths of the images.
        label: The column to learn from.
        clean: The column of true labels, which are used for measurement alone.
        annotators: Columns that hold the votes of one annotator each.
    """

    path: str | None = None
    label: str | None = None
    clean: str | None = None
    annotators: tuple[str, ...] = ()


def find_path_column(table: Table, images: Mapping[str, Entry], columns: ColumnNames) -> int | None:
    """The column of paths: the one named, else of those with a usual name the first whose values name images.

    Args:
        table: The table.
        images: The images of the container by path.
        columns: The columns that the user named.

    Returns:
        The position of the column; None where there is none.
    """
    if columns.path is not None:
        return find_column(table, columns.path)
    usual = [at for name in PATH_COLUMNS if (at := find_column(table, name)) is not None]
    if len(usual) < 2:
        return usual[0] if usual else None
    bases = base_folders(table.path)
    sample = [fields for _, fields in table.rows[:SAMPLE_ROWS]]

    def names_an_image(at: int) -> bool:
        paths = (fields[at].removeprefix("./") for fields in sample)
        return any(base + path in images for path in paths for base in bases)

    return next(filter(names_an_image, usual), usual[0])


def find_label_column(table: Table, path: int, columns: ColumnNames) -> int | None:
    """The column of given labels: the one named, else `label`, else the only one with a usual name or of any name.

    Args:
        table: The table.
        path: Position of its column of paths.
        columns: The columns that the user named.

    Returns:
        The position of the column; None where there is none, or several.
    """
    if columns.label is not None:
        return find_column(table, columns.label)
    known = {path, find_column(table, columns.clean), find_column(table, SPLIT_COLUMN)}
    known |= {find_column(table, name) for name in columns.annotators}
    usual = [at for name in LABEL_COLUMNS if (at := find_column(table, name)) is not None and at not in known]
    if usual:
        is_label = table.columns[usual[0]].casefold() == LABEL_COLUMNS[0]
        return usual[0] if is_label or len(usual) == 1 else None
    others = [at for at, name in enumerate(table.columns) if at not in known and name.casefold() not in PATH_COLUMNS]
    if not others:  # a table of clean labels alone is learned from as well
        return find_column(table, LABEL_COLUMNS[0])
    return others[0] if len(others) == 1 else None


def has_annotators(table: Table, columns: ColumnNames) -> bool:
    """Whether the user named columns of annotators, and the table has all of them."""
    return bool(columns.annotators) and all(find_column(table, name) is not None for name in columns.annotators)


def find_column(table: Table, name: str | None) -> int | None:
    """Where a column is: exactly so written, else the only one that differs in case alone."""
    if name is None:
        return None
    if name in table.columns:
        return table.columns.index(name)
    folded = name.strip().casefold()
    alike = [at for at, column in enumerate(table.columns) if column.casefold() == folded]
    return alike[0] if len(alike) == 1 else None


def base_folders(table: str) -> list[str]:
    """Where the paths of a table may start, each ending in `/`: its folder and each folder above, up to the root; and
    below each of them images/, a folder of the table's name, and one of its last word (train2017 of
    instances_train2017.json)."""
    home = table.rpartition("/")[0]
    above = [home]
    while above[-1]:
        above.append(above[-1].rpartition("/")[0])
    bases = [f"{folder}/" if folder else "" for folder in above]
    words = dict.fromkeys((stem(table), stem(table).rpartition("_")[2]))
    inner = ["images/", *(f"{word}/" for word in words), *(f"images/{word}/" for word in words)]
    first = [bases[0] + folder for folder in inner]
    return list(dict.fromkeys((bases[0], *first, *bases, *(base + folder for base in bases[1:] for folder in inner))))


def stem(path: str) -> str:
    """The name of a file without folder and ending, in lower case."""
    return path.rpartition("/")[2].rpartition(".")[0].lower()
