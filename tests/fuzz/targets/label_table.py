r"""Tables of labels in a folder of images: CSV, TSV, JSON lines and annotations of other programs.

The first byte of an input chooses the names of the files and which columns the user names; the rest are the files, with
a byte \x1e between them.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import tempfile
from pathlib import Path

from ml.formats import csv_cells, tables
from ml.formats.archive import is_table
from ml.formats.container import open_container
from ml.formats.entries import Limits
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import resolve_labels
from ml.formats.table_columns import ColumnNames
from tests.fuzz.targets import refusal

TABLE_CODES = {"bad_encoding", "bad_table", "bad_columns", "ragged_row", "table_too_large"}
CODES = TABLE_CODES | {
    "no_images", "ambiguous_layout", "too_few_classes", "conflicting_labels", "unknown_class", "bad_class_list",
    "ambiguous_label_column", "unknown_column", "empty_path", "unsafe_path", "bad_label", "bad_split", "empty_label",
    "archive_too_large", "unsafe_entry_name",
}  # fmt: skip
IMAGES = ("images/1.jpg", "images/2.jpg", "cat/3.jpg", "cat/é.png", "dog/4.jpg", "test/5.jpg")
SAMPLES = tuple(image.rpartition(".")[0] for image in IMAGES)
FILES = (
    ("labels.csv",), ("labels.tsv",), ("labels.jsonl",), ("a.json",), tuple(f"{sample}.cls" for sample in SAMPLES),
    ("classes.txt", "labels.csv"), tuple(f"{sample}.json" for sample in SAMPLES), ("other.csv", "images/more.tsv"),
    ("train.csv", "test.csv"), ("images/notes.jsonl", "classes.txt"),
)  # fmt: skip
LIMITS = Limits(entries=50, entry_bytes=1 << 20, table_bytes=1 << 16, table_rows=50)
COLUMNS = (
    ColumnNames(), ColumnNames("p", "l", "c"), ColumnNames(annotators=("a", "b")),
    ColumnNames(label="l", annotators=("a", "b")),
)  # fmt: skip


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of images, which need no content: names and tables alone decide."""
    made = tempfile.TemporaryDirectory()
    for name in IMAGES:
        (Path(made.name) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(made.name) / name).touch()
    return made


def check(data: bytes) -> bool:
    choice = data[0] if data else 0
    files = dict(zip(FILES[(choice & 63) % len(FILES)], data[1:].split(b"\x1e"), strict=False))
    for name, content in files.items():
        if is_table(name):
            check_table(name, content)
    return check_labels(files, COLUMNS[choice >> 6])


def check_table(name: str, content: bytes) -> None:
    """Every row has a value for each column, lines are in order, and the table written anew is read as it was."""
    try:
        table = tables.parse(name, content, LIMITS.table_rows)
    except DatasetFormatError as error:
        refusal(error, TABLE_CODES)
        return
    assert len(set(table.columns)) == len(table.columns)
    assert 0 < len(table.rows) <= LIMITS.table_rows
    lines = [line for line, _ in table.rows]
    assert lines == sorted(set(lines))
    assert lines[-1] <= content.count(b"\n") + content.count(b"\r") + 1
    for _, cells in table.rows:
        assert len(cells) == len(table.columns)
        assert "\0" not in "".join(cells)
        assert all(csv_cells.unescape(str(csv_cells.escape(cell))) == cell for cell in cells)
    if name.endswith("jsonl"):
        written = "".join(json.dumps(dict(zip(table.columns, cells, strict=True))) + "\n" for _, cells in table.rows)
    else:
        file = io.StringIO(newline="")
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([table.columns, *(cells for _, cells in table.rows)])
        written = file.getvalue()
    again = tables.parse(name, written.encode("utf-8", "surrogatepass"), LIMITS.table_rows)
    assert again.columns == table.columns
    assert [list(cells) for _, cells in again.rows] == [list(cells) for _, cells in table.rows]


def check_labels(files: dict[str, bytes], columns: ColumnNames) -> bool:
    """A layout names images that exist, each once, with classes that it lists."""
    home = Path(folder().name)
    for name, content in files.items():
        (home / name).write_bytes(content)
    try:
        layout = resolve_labels(open_container(home, LIMITS), columns)
    except DatasetFormatError as error:
        refusal(error, CODES)
        return False
    finally:
        for name in files:
            (home / name).unlink()
    paths = [image.path for image in layout.images]
    assert set(paths) <= set(IMAGES)
    assert len(set(paths)) == len(paths)
    assert list(layout.classes) == sorted(set(layout.classes))
    assert all(tables.check_label(label) is None and label.strip() for label in layout.classes)
    ids = {image.given for image in layout.images} | {image.clean for image in layout.images}
    assert ids <= {None, *range(len(layout.classes))}
    assert len({image.given for image in layout.images if image.split == "train"} - {None}) > 1
    assert all(image.given is not None for image in layout.images if image.split == "train")
    assert layout.votes is None or set(layout.votes.by_path) <= set(IMAGES)
    return True
