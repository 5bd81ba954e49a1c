"""The development sets with boxes or masks, as squares: what to train on, and pictures whose object is known.

Shapes: pictures uint8 (N, S, S, 3), labels int64 (N,), objects bool (T, S, S): where the labelled class is.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ml.data import decoding
from ml.data.dataset import LabeledImages
from ml.scenes import generate
from tests.benchmarks._sizes import size

SIDE = 64
SCENE_SIDE = 32
Cells = NDArray[np.bool_]


class Located(NamedTuple):
    """Pictures whose object is known; `labels` are None where the classes are not those of the training."""

    pictures: Tensor
    labels: Tensor | None
    objects: Tensor


class Set(NamedTuple):
    """A set to train on, and what to measure on."""

    trained: LabeledImages
    located: Located


def imagenette(folder: Path, side: int = SIDE, limit: int | None = None) -> Set:
    """Trained with a quarter of wrong labels; measured on 250 other photographs, by all boxes of the class."""
    trained = _labelled(folder, "train.csv", "noise25", side, limit)
    of = defaultdict(list)
    for row in _rows(folder / "boxes.csv"):
        of[row["file"]].append(_box(row))
    rows = _rows(folder / "loc.csv")
    return Set(trained, _located(folder, rows, trained.classes, [of[row["file"]] for row in rows], side))


def neu_steel(folder: Path, side: int = SIDE, limit: int | None = None) -> Set:
    """Trained with a fifth of wrong labels; measured on the same pictures: boxes are never trained on."""
    trained = _labelled(folder, "images.csv", "sym20", side, limit)
    of = defaultdict(list)
    for row in _rows(folder / "boxes.csv"):
        of[row["file"], row["label"]].append(_box(row))
    rows = [row for row in _rows(folder / "images.csv") if of[row["file"], row["clean"]]]
    return Set(trained, _located(folder, rows, trained.classes, [of[row["file"], row["clean"]] for row in rows], side))


def magnetic_tile(folder: Path, side: int = SIDE, limit: int | None = None) -> Set:
    """As neu_steel, by pixel masks; tiles without a defect have nothing to find."""
    trained = _labelled(folder, "images.csv", "sym20", side, limit)
    rows = [row for row in _rows(folder / "images.csv") if row["mask"]]
    cells = [_mask(folder / row["mask"], None, side) for row in rows]
    with_objects = [i for i, cell in enumerate(cells) if cell.any()]
    squares = torch.stack([_square(folder / rows[i]["file"], side)[0] for i in with_objects])
    labels = torch.tensor([trained.classes.index(rows[i]["clean"]) for i in with_objects])
    return Set(trained, Located(squares, labels, torch.from_numpy(np.stack([cells[i] for i in with_objects]))))


def coco_things(folder: Path, side: int = SIDE) -> Located:
    """Photographs of other classes than any training's: masks of each picture's main class."""
    numbers = {row["name"]: int(row["id"]) for row in _rows(folder / "classes.csv")}
    rows = _rows(folder / "images.csv")
    cells = [_mask(folder / row["mask"], numbers[row["clean"]], side) for row in rows]
    with_objects = [i for i, cell in enumerate(cells) if cell.any()]
    squares = torch.stack([_square(folder / rows[i]["file"], side)[0] for i in with_objects])
    return Located(squares, None, torch.from_numpy(np.stack([cells[i] for i in with_objects])))


def drawn_scenes() -> Set:
    """Off-centre objects, half of the labels redrawn as the scene's; measured on other pictures, by exact masks."""
    train = generate.draw(size(2400, 64), seed=0, image_size=SCENE_SIDE, own_scene=0.5, noise="confounded")
    test = generate.draw(size(600, 16), seed=1, image_size=SCENE_SIDE)
    labelled = LabeledImages(torch.from_numpy(train.images), torch.from_numpy(train.given_labels), generate.CLASSES)
    pictures, labels, cells = map(torch.from_numpy, (test.images, test.clean, test.masks))
    return Set(labelled, Located(pictures, labels, cells))


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _box(row: dict[str, str]) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in ("x0", "y0", "x1", "y1"))


def _square(path: Path, side: int) -> tuple[Tensor, tuple[int, int]]:
    """A picture squashed to the side, and its own height and width."""
    picture = decoding.decode(path.read_bytes())
    height, width = picture.shape[:2]
    square = decoding.resize(picture, decoding.Geometry(width, height, side, "squash"))
    return torch.from_numpy(np.array(square)), (height, width)


def _labelled(folder: Path, table: str, column: str, side: int, limit: int | None) -> LabeledImages:
    """The first `limit` rows of a table; all of them for None."""
    rows = _rows(folder / table)
    classes = tuple(sorted({row["clean"] for row in rows}))
    rows = rows[:limit]
    labels = torch.tensor([classes.index(row[column]) for row in rows])
    return LabeledImages(torch.stack([_square(folder / row["file"], side)[0] for row in rows]), labels, classes)


def _located(
    folder: Path,
    rows: Sequence[dict[str, str]],
    classes: Sequence[str],
    boxes: Sequence[list[tuple[float, ...]]],
    side: int,
) -> Located:
    squares, cells = [], []
    for row, known in zip(rows, boxes, strict=True):
        square, (height, width) = _square(folder / row["file"], side)
        squares.append(square)
        y, x = (np.arange(side) + 0.5) * height / side, (np.arange(side) + 0.5) * width / side
        inside = [((y >= b[1]) & (y < b[3]))[:, None] & ((x >= b[0]) & (x < b[2]))[None] for b in known]
        cells.append(np.logical_or.reduce(inside))
    labels = torch.tensor([classes.index(row["clean"]) for row in rows])
    return Located(torch.stack(squares), labels, torch.from_numpy(np.stack(cells)))


def _mask(path: Path, value: int | None, side: int) -> Cells:
    """Cells of the square at least half covered by a value (by any but 0); of tiny objects those covered most."""
    stored = np.asarray(Image.open(path))
    chosen = (stored > 0) if value is None else (stored == value)
    picture = Image.fromarray(chosen.astype(np.uint8) * 255)
    cover = np.asarray(picture.resize((side, side), Image.Resampling.BOX))
    return (cover > 0) & (cover >= min(128, 0.5 * float(cover.max())))
