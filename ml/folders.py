"""A plain folder or zip of pictures as tensors, for the command line.

Tables win: `train.csv`, `labels.csv` and `test.csv`, at the top and exactly so named. A picture's path, seen from
there, is in the column `file`, `file_name` or `path`; its label in `label`, `given`, `class` or the one asked for; its
clean label, where known, in `clean`. Without a table it is `[train|test/]<class>/.../<picture>`, again from the top.
Classes are all names that occur, sorted; what has no label or cannot be decoded is left out and named. Before any of
this, a set in the format of its authors is known by its files (`ml.layouts`).

The service, which must distrust what it reads, has its own way in. It reads more: folders around the set, `val`,
tables of other names, a column `split`, paths seen from the table. There a column `clean` is the truth only where the
upload says so, and no column to learn from is guessed where several could be.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch

from ml import layouts
from ml.data import decoding
from ml.data.dataset import UNKNOWN, LabeledImages, Truth
from ml.data.decoding import Geometry, ImageArray, Resize
from ml.errors import UndecodableImage, UnusableData
from ml.layouts.source import Source, opened, text

TABLES = {"train.csv": "train", "labels.csv": "train", "test.csv": "test"}
PATH_COLUMNS = ("file", "file_name", "path")
LABEL_COLUMNS = ("label", "given", "class")
CLEAN_COLUMN = "clean"
SPLITS = ("train", "test")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


class Row(NamedTuple):
    """A picture to learn from or to test on; `clean` is "" where unknown."""

    path: str
    split: str
    given: str
    clean: str


class Found(NamedTuple):
    """A data set and what had to be left out of it."""

    images: LabeledImages
    truth: Truth
    names: tuple[str, ...]  # (N,) of the pictures to learn from, as the folder, zip or format names them
    left_out: tuple[str, ...]


def read(path: Path, *, image_size: int, resize: Resize = "squash", label_column: str | None = None) -> Found:
    """The pictures and labels in a folder or zip. `label_column` names the column to learn from.

    UnusableData if there is no table and no class folder, or fewer than two classes.
    """
    rows, fetch, left_out = _found(opened(path), label_column)
    if len({row.given for row in rows if row.split == "train" and row.given}) < 2:
        raise UnusableData(f"{path.name} has fewer than two classes", code="too_few_classes")
    classes = tuple(sorted({label for row in rows for label in (row.given, row.clean) if label}))
    pixels: list[torch.Tensor] = []
    kept: list[Row] = []
    for number, row in enumerate(rows):
        if not (row.given or (row.split == "test" and row.clean)):
            left_out.append(f"{row.path}: no label")
            continue
        try:
            picture = fetch(number)
        except (UndecodableImage, OSError, KeyError) as error:
            left_out.append(f"{row.path}: {error}")
            continue
        geometry = Geometry.of(picture.shape[1], picture.shape[0], image_size, resize)
        pixels.append(torch.from_numpy(np.array(decoding.resize(picture, geometry))))
        kept.append(row)
    return _assembled(kept, pixels, classes, tuple(left_out))


def _assembled(
    rows: list[Row], pixels: list[torch.Tensor], classes: tuple[str, ...], left_out: tuple[str, ...]
) -> Found:
    number: Mapping[str, int] = {name: number for number, name in enumerate(classes)}
    train = [i for i, row in enumerate(rows) if row.split == "train"]
    test = [i for i, row in enumerate(rows) if row.split == "test"]
    if not train:
        raise UnusableData("no picture to train on could be decoded", code="no_images")
    clean = torch.tensor([number.get(rows[i].clean, UNKNOWN) for i in train])
    return Found(
        LabeledImages(_stacked(pixels, train), torch.tensor([number[rows[i].given] for i in train]), classes),
        Truth(
            train_clean=clean if bool((clean != UNKNOWN).any()) else None,
            test_images=_stacked(pixels, test) if test else None,
            test_labels=torch.tensor([number[rows[i].clean or rows[i].given] for i in test]) if test else None,
        ),
        tuple(rows[i].path for i in train),
        left_out,
    )


def _stacked(pixels: list[torch.Tensor], numbers: Iterable[int]) -> torch.Tensor:
    return torch.stack([pixels[number] for number in numbers])


def _found(source: Source, label_column: str | None) -> tuple[list[Row], Callable[[int], ImageArray], list[str]]:
    """Rows, the picture of each by its number, and what is left out already."""
    if (published := layouts.find(source)) is not None:
        given, clean = published.columns(label_column)
        truth = [""] * len(given) if clean is None else clean
        columns = zip(published.names, published.splits, given, truth, strict=True)
        return [Row(*each) for each in columns], published.pixels, list(published.left_out)
    names = source.names()
    tables = [name for name in names if name in TABLES]
    rows = _from_tables(source, tables, label_column) if tables else _from_folders(names)
    return rows, lambda number: decoding.decode(source.read(rows[number].path)), []


def _from_tables(source: Source, tables: list[str], label_column: str | None) -> list[Row]:
    rows: list[Row] = []
    for table in tables:
        reader = csv.DictReader(io.StringIO(text(source, table), newline=""))
        columns = list(reader.fieldnames or ())
        path_column = _first(PATH_COLUMNS, columns, table)
        split = TABLES[table]
        wanted = (label_column,) if label_column and (split == "train" or label_column in columns) else LABEL_COLUMNS
        given_column = _first((*wanted, CLEAN_COLUMN) if split == "test" else wanted, columns, table)
        rows += [Row(line[path_column], split, line[given_column], line.get(CLEAN_COLUMN) or "") for line in reader]
    return rows


def _first(wanted: Iterable[str], columns: list[str], table: str) -> str:
    found = [name for name in wanted if name in columns]
    if not found:
        raise UnusableData(
            f"{table} has none of the columns {', '.join(wanted)}",
            hint=f"its columns are {', '.join(columns)}; name one with --label-column",
            code="wrong_columns",
        )
    return found[0]


def _from_folders(names: list[str]) -> list[Row]:
    """`[train|test/]<class>/.../<picture>`."""
    pictures = [PurePosixPath(name).parts for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    split_above = {parts[0] for parts in pictures if len(parts) > 2} & set(SPLITS)
    rows = []
    for parts in pictures:
        split, below = (parts[0], parts[1:]) if split_above and parts[0] in SPLITS else ("train", parts)
        if len(below) > 1:
            rows.append(Row("/".join(parts), split, below[0], ""))
    if not rows:
        raise UnusableData("no table and no class folder with pictures was found", code="no_images")
    return rows
