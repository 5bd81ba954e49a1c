"""Photographs as objects and as scenes, read from two folders: what a network meets outside of drawings.

    OBJECTS/CLASS/any.png         a picture with transparency: what is opaque is the object
    OBJECTS/CLASS/any.jpg         cut out by `any.mask.png` beside it (white is the object), by the rows of
                                  `OBJECTS/boxes.csv` (file, x0, y0, x1, y1), or, with neither, all of the picture
    SCENES/NAME/any.jpg           a place without the objects; a folder is a family of scenes

Nothing is known here of labels, or of where an object stands. Shapes and ranges as in `ml.scenes.drawn`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ml.errors import UnusableData
from ml.scenes.drawn import Floats, Layer

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MASK = ".mask.png"
BOXES = "boxes.csv"
LARGEST = 256  # pixels a side that are kept of a photograph
SMALLEST = 8  # pixels a side below which a piece shows nothing
NARROWEST_VIEW = 0.6  # of a scene's shorter side; every picture shows another part of it
MIRRORED = 0.5

Families = tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class CutOuts:
    """Objects cut from photographs: `pieces[k]` are RGBA pictures of class `classes[k]`, cut to what is opaque."""

    classes: tuple[str, ...]
    pieces: Families

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Every piece of every class, in the order of their names; UnusableData where a class has none."""
        boxes = _boxes(folder)
        named = {
            each.name: [piece for file in _pictures(each) for piece in _cut(file, boxes)] for each in _below(folder)
        }
        return cls(*_families(folder, named))

    def parted(self, held_out: float) -> tuple[Self, Self]:
        """The last share of every class apart, so that a test shows objects that no training has seen."""
        first, second = _parted(self.pieces, held_out)
        return replace(self, pieces=first), replace(self, pieces=second)

    def layers(
        self, kind: int, centre: Floats, size: float, side: int, random: np.random.Generator
    ) -> tuple[Layer, ...]:
        """A piece of class `kind`; `centre` (x, y) and `size`, its longer side, in pixels."""
        piece = self.pieces[kind][random.integers(len(self.pieces[kind]))]
        if random.random() < MIRRORED:
            piece = ImageOps.mirror(piece)
        scale = size / max(piece.size)
        width, height = (max(1, round(length * scale)) for length in piece.size)
        small = piece.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC)
        sheet = Image.new("RGBA", (side, side))
        sheet.paste(small, (round(float(centre[0]) - width / 2), round(float(centre[1]) - height / 2)))
        pixels = np.asarray(sheet, np.float64)
        return (Layer(pixels[:, :, 3] / 255, pixels[:, :, :3]),)


@dataclass(frozen=True)
class Places:
    """Scenes cut from photographs: `pictures[k]` are RGB pictures of the family `names[k]`."""

    names: tuple[str, ...]
    pictures: Families

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Every picture of every family, in the order of their names; UnusableData where a family has none."""
        named = {each.name: [_small(_open(file).convert("RGB")) for file in _pictures(each)] for each in _below(folder)}
        return cls(*_families(folder, named))

    def parted(self, held_out: float) -> tuple[Self, Self]:
        """The last share of every family apart, as `CutOuts.parted`."""
        first, second = _parted(self.pictures, held_out)
        return replace(self, pictures=first), replace(self, pictures=second)

    def view(self, number: int, side: int, random: np.random.Generator) -> Floats:
        """A square part (S, S, 3) of a picture of family `number`."""
        picture = self.pictures[number][random.integers(len(self.pictures[number]))]
        if random.random() < MIRRORED:
            picture = ImageOps.mirror(picture)
        length = min(picture.size) * random.uniform(NARROWEST_VIEW, 1.0)
        left, top = (random.uniform(0.0, room - length) for room in picture.size)
        box = (left, top, left + length, top + length)
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=box), np.float64)


def _below(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UnusableData(f"{folder} is no folder")
    yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.endswith(MASK):
            yield path


def _families(folder: Path, named: dict[str, list[Image.Image]]) -> tuple[tuple[str, ...], Families]:
    if len(named) < 2:
        raise UnusableData(f"{folder} has {len(named)} folders of pictures; two are the least")
    if empty := [name for name, pictures in named.items() if not pictures]:
        raise UnusableData(f"no pictures in {folder / empty[0]}")
    return tuple(named), tuple(tuple(pictures) for pictures in named.values())


def _parted(families: Families, held_out: float) -> tuple[Families, Families]:
    """The first and the last of every family; with `held_out` 0 both are all of it."""
    if held_out == 0.0:
        return families, families
    if few := [len(family) for family in families if len(family) < 2]:
        raise UnusableData(f"a family of {few[0]} picture cannot be parted", hint="add pictures, or hold none out")
    ends = [min(max(1, round(len(family) * (1 - held_out))), len(family) - 1) for family in families]
    pairs = list(zip(families, ends, strict=True))
    return tuple(family[:end] for family, end in pairs), tuple(family[end:] for family, end in pairs)


def _cut(file: Path, boxes: dict[str, list[tuple[int, ...]]]) -> Iterator[Image.Image]:
    """The pieces of one photograph, as large as they need to be."""
    picture = _open(file).convert("RGBA")
    mask = file.with_name(file.stem + MASK)
    if mask.exists():
        outline = _open(mask).convert("L")
        if outline.size != picture.size:
            raise UnusableData(f"{mask} is {outline.size} pixels large and its picture {picture.size}")
        picture.putalpha(outline)
    opaque = picture.getchannel("A")
    if mask.exists() or opaque.getextrema() != (255, 255):
        wanted: Sequence[tuple[int, ...] | None] = [opaque.getbbox()]
    else:
        wanted = boxes.get(f"{file.parent.name}/{file.name}", [(0, 0, *picture.size)])
    for box in wanted:
        if box is not None:
            left, top, right, bottom = box
            inside = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
            if min(inside[2] - inside[0], inside[3] - inside[1]) >= SMALLEST:
                yield _small(picture.crop(inside))


def _boxes(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    """The boxes of each picture that `boxes.csv` names, if it is there; UnusableData where a line holds none."""
    found: dict[str, list[tuple[int, ...]]] = {}
    if not (folder / BOXES).exists():
        return found
    line = 1
    try:
        with (folder / BOXES).open(encoding="utf-8-sig", newline="") as file:
            for row in (rows := csv.DictReader(file)):
                line = rows.line_num
                box = tuple(round(float(row[edge])) for edge in ("x0", "y0", "x1", "y1"))
                found.setdefault(row["file"], []).append(box)
    except (ValueError, OverflowError, TypeError, KeyError, csv.Error) as error:  # no number, no text, no such column
        raise UnusableData(f"{folder / BOXES}, line {line}: not file, x0, y0, x1, y1 ({error})") from error
    return found


def _open(file: Path) -> Image.Image:
    """Upright; UnusableData where it is no picture."""
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise UnusableData(f"{file}: {error}") from error


def _small(picture: Image.Image) -> Image.Image:
    """At most `LARGEST` pixels a side."""
    if max(picture.size) <= LARGEST:
        return picture
    scale = LARGEST / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
