r"""Tables of labels in a folder of images: CSV, TSV, JSON lines and annotations of other programs.

The first byte of an input chooses the name of the file and whether columns of annotators are named. A byte \x1e ends
the file of one image where each image has a file of its own.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import tempfile
from pathlib import Path

from ml.formats import csv_cells, tables
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
FILES = ("labels.csv", "labels.tsv", "labels.jsonl", "a.json", "*.cls", "classes.txt", "*.json", "other.csv")
IMAGES = ("images/1.jpg", "images/2.jpg", "images/b/3.jpg", "images/b/é.png", "test/4.jpg")
LIMITS = Limits(entries=50, entry_bytes=1 << 20, table_bytes=1 << 16, table_rows=50)
NUMBERS = b"file,label\n1.jpg,0\n2.jpg,1\n"  # for a list of classes to name
ANNOTATORS = ColumnNames(annotators=("a", "b"))


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of images, which need no content: names and tables alone decide."""
    made = tempfile.TemporaryDirectory()
    for name in IMAGES:
        (Path(made.name) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(made.name) / name).touch()
    return made


def check(data: bytes) -> bool:
    choice, content = (data[0] if data else 0), data[1:]
    name = FILES[choice % len(FILES)]
    if name.endswith(("csv", "tsv", "jsonl")):
        check_table(name, content)
    return check_labels(name, content, ANNOTATORS if choice & 0x80 else ColumnNames())


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


def check_labels(name: str, content: bytes, columns: ColumnNames) -> bool:
    """A layout names images that exist, each once, with classes that it lists."""
    home = Path(folder().name)
    files = dict(
        zip((name.replace("*", image.rpartition(".")[0]) for image in IMAGES), content.split(b"\x1e"), strict=False)
    )
    if "*" not in name:
        files = {name: content}
    if name == "classes.txt":
        files["labels.csv"] = NUMBERS
    for path, part in files.items():
        (home / path).write_bytes(part)
    try:
        layout = resolve_labels(open_container(home, LIMITS), columns)
    except DatasetFormatError as error:
        refusal(error, CODES)
        return False
    finally:
        for path in files:
            (home / path).unlink()
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
