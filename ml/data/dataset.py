"""A ready data set as tensors: given labels for training, the truth apart, and splits by seed.

What a method may see has no field for clean labels (law 7); `Truth` is for `ml.evaluation.measure` alone. Pixels stay
on disk, memory-mapped. Knows nothing of archives, tables or how the data set came to be.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ml.data import pixel_file
from ml.data.decoding import Resize
from ml.data.pixel_file import PixelFile, Progress
from ml.errors import UnusableData

UNKNOWN = -1


@dataclass(frozen=True)
class LabeledImages:
    """images uint8 (N, S, S, 3), maybe memory-mapped; labels int64 (N,), the given ones; class names by id."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Truth:
    """What measuring may know: clean labels of the train images (-1 unknown) or None, and the test set.

    test_labels are the clean labels where known, else the given ones; test_images is None where there is no test set.
    """

    train_clean: Tensor | None
    test_images: Tensor | None
    test_labels: Tensor | None


@dataclass(frozen=True, slots=True)
class Picture:
    """What the index says of a picture; width and height are those of the upright original."""

    index: int
    path: str
    split: str
    given: int | None
    width: int
    height: int


class Row(NamedTuple):
    """A picture of a ready data set, as `ml.data.pixel_file` finds it in the container."""

    path: str
    offset: int
    stored_bytes: int
    deflated: bool | int
    image_bytes: int
    crc: int | None = None  # checked once, at ingest


def load(
    folder: Path, *, image_size: int, resize: Resize = "squash", threads: int = 1, progress: Progress = pixel_file.quiet
) -> tuple[LabeledImages, Truth]:
    """The data set in `folder` at a size; pixels of a size not seen before are made and kept."""
    with index(folder) as database:
        rows = database.execute('SELECT split, given, clean FROM image ORDER BY "index"').fetchall()
        classes = tuple(name for (name,) in database.execute('SELECT name FROM class ORDER BY "index"'))
        digest = json.loads(database.execute("SELECT value FROM fact WHERE key = 'digest'").fetchone()[0])
    squares = _pixels(folder, image_size, resize, threads, progress)
    if len(squares) != len(rows):
        raise UnusableData(f"{len(squares)} squares of pixels for {len(rows)} images", code="dataset_corrupt")
    train = [(given, clean) for split, given, clean in rows if split == "train"]
    test = [given if clean is None else clean for split, given, clean in rows if split != "train"]
    known = any(clean is not None for _, clean in train)
    labeled = LabeledImages(squares[: len(train)], _ids([given for given, _ in train]), classes, digest)
    truth = Truth(
        train_clean=_ids([clean for _, clean in train]) if known else None,
        test_images=squares[len(train) :] if test else None,
        test_labels=_ids(test) if test else None,
    )
    return labeled, truth


def split(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ascending int64 indices (train, validation) of a random split; both keep at least one of n >= 2 samples."""
    if not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be in [0, 1), not {fraction}")
    held_out = 0 if fraction == 0 or n < 2 else min(max(1, round(n * fraction)), n - 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values


@contextlib.contextmanager
def index(folder: Path) -> Iterator[sqlite3.Connection]:
    """The data set's index, read-only: it never changes once the folder exists."""
    location = f"{(folder / 'index.sqlite').absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(location, uri=True)) as database:
        yield database


def facts(folder: Path) -> dict[str, object]:
    """What ingest found out: digest, suggested image_size, counts."""
    with index(folder) as database:
        return {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM fact")}


def pictures(folder: Path, splits: Collection[str] = ("train", "test")) -> list[Picture]:
    """The pictures of these splits in index order: those of `train` are the rows of LabeledImages."""
    query = 'SELECT "index", path, split, given, width, height FROM image ORDER BY "index"'
    with index(folder) as database:
        return [Picture(*row) for row in database.execute(query) if row[2] in splits]


def picture(folder: Path, number: int) -> bytes:
    """The original bytes of the image with this index."""
    with index(folder) as database, pixel_file.mapped(folder / "archive") as view:
        return pixel_file.read(view, _rows(database, f'WHERE "index" = {int(number)}')[0])


def _pixels(folder: Path, size: int, resize: Resize, threads: int, progress: Progress) -> Tensor:
    target = pixel_file.path(folder, size, resize)
    if not target.exists():
        with index(folder) as database:
            rows = _rows(database)
        with PixelFile(target, size) as file:
            outcomes = pixel_file.decode_all(
                folder / "archive", rows, file, resize=resize, threads=threads, progress=progress
            )
            if bad := [row.path for row, outcome in zip(rows, outcomes, strict=True) if outcome.fault]:
                raise UnusableData(f"{len(bad)} images can no longer be read, first {bad[0]}", code="dataset_corrupt")
    # Copy on write: torch wants memory it may write to, the file must never change.
    return torch.from_numpy(np.load(target, mmap_mode="c", allow_pickle=False))


def _rows(database: sqlite3.Connection, where: str = "") -> list[Row]:
    query = f'SELECT path, offset, stored_bytes, deflated, image_bytes FROM image {where} ORDER BY "index"'  # noqa: S608
    return [Row(*row) for row in database.execute(query)]


def _ids(labels: list[int | None]) -> Tensor:
    return torch.tensor([UNKNOWN if label is None else label for label in labels], dtype=torch.int64)
