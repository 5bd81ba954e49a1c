"""Rows and texts that several exports have in common."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from ml.formats import csv_cells
from ml.formats.export_source import ExportImage, ExportSource
from ml.formats.table_columns import UPLOADED_COLUMN

TEXT_CHUNK_BYTES = 64 << 10
NamedImages = Callable[[], Iterable[tuple[str, ExportImage]]]


def csv_table(source: ExportSource, images: NamedImages) -> Callable[[], Iterator[bytes]]:
    """`labels.csv`: path, split, labels and what was decided, a row for each image.

    Text that a spreadsheet would run has an apostrophe before it, which our own reader takes off again.

    Args:
        source: The version of the labels.
        images: Starts a reading of the images with their paths in the archive.
    """

    def rows() -> Iterator[Sequence[str | None]]:
        header = None
        for path, image in images():
            row = {"file": path, "split": image.record.split, "label": image.label, **label_facts(source, image)}
            if header is None:
                header = tuple(row)
                yield header
            yield tuple(row.values())

    def lines() -> Iterator[str]:
        writer = csv.writer(_Echo(), lineterminator="\n")
        return (writer.writerow([csv_cells.escape(value) for value in row]) for row in rows())

    return lambda: joined(lines())


class _Echo:
    """A file for `csv.writer`, which returns what its file does: the line itself."""

    def write(self, line: str) -> str:
        return line


def label_facts(source: ExportSource, image: ExportImage) -> dict[str, str | None]:
    """What is known of the label of an image: the clean one if the set has any, the uploaded one, what was decided."""
    clean = {"clean_label": image.clean} if source.has_clean else {}
    return {**clean, UPLOADED_COLUMN: image.uploaded, "action": image.action}


def json_lines(items: Callable[[], Iterable[object]]) -> Callable[[], Iterator[bytes]]:
    """JSON lines, one for each item of a reading."""
    return lambda: joined(to_json(item) + "\n" for item in items())


def json_document(fields: Mapping[str, object | Callable[[], Iterable[str]]]) -> Callable[[], Iterator[bytes]]:
    """A JSON object that is never held.

    Args:
        fields: Values by key; a function starts a reading of the elements of an array, each as JSON.
    """

    def parts() -> Iterator[str]:
        for number, (key, value) in enumerate(fields.items()):
            yield f"{',' if number else '{'}\n{to_json(key)}: "
            if callable(value):
                yield from json_array(value())
            else:
                yield to_json(value)
        yield "\n}\n"

    return lambda: joined(parts())


def json_array(items: Iterable[str], brackets: str = "[]") -> Iterator[str]:
    """An array, one element a line.

    Args:
        items: The elements as JSON.
        brackets: `{}` for an object, whose items are members.
    """
    start = brackets[0]
    for item in items:
        yield f"{start}\n{item}"
        start = ","
    yield brackets if start == brackets[0] else f"\n{brackets[1]}"


def to_json(value: object) -> str:
    """JSON in ASCII, which no program reads in another encoding."""
    return json.dumps(value)


def joined(texts: Iterable[str]) -> Iterator[bytes]:
    """The texts in UTF-8, joined to chunks."""
    return regrouped((text.encode() for text in texts), TEXT_CHUNK_BYTES)


def regrouped(chunks: Iterable[bytes], least: int) -> Iterator[bytes]:
    """The same bytes in chunks of at least `least`, but for the last one: lines, headers and small images are many."""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= least:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
