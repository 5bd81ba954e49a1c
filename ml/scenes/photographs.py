"""Photographs as foregrounds and backgrounds, read from two folders.

    OBJECTS/CLASS/any.png         an image with transparency: what is opaque is the object
    OBJECTS/CLASS/any.jpg         cut out by `any.mask.png` beside it (white is the object), by the rows of
                                  `OBJECTS/boxes.csv` (file, x0, y0, x1, y1), or, with neither, the whole image
    SCENES/NAME/any.jpg           a place without the objects; a folder is a family of scenes

Labels and the positions of objects are not known here. Shapes and ranges are those of `ml.scenes.protocols`.
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
from ml.scenes.protocols import Floats, Layer

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
MASK = ".mask.png"
BOXES = "boxes.csv"
LARGEST = 256  # pixels a side to which photographs are reduced
SMALLEST = 8  # pixels a side; smaller cut-outs are left out
LEAST_CROP = 0.6  # of a scene's shorter side: every sample is another square crop of it
MIRRORED = 0.5  # share of samples that are mirrored

Families = tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class PhotoForegrounds:
    """Objects cut out of photographs: `cut_outs[k]` are RGBA images of `classes[k]`, cropped to what is opaque."""

    classes: tuple[str, ...]
    cut_outs: Families

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read all cut-outs, classes and files in the order of their names; UnusableData where a class has none."""
        boxes = _boxes(folder)
        named = {
            family.name: [cut_out for file in _image_files(family) for cut_out in _cut_out(file, boxes)]
            for family in _subfolders(folder)
        }
        return cls(*_families(folder, named))

    def split(self, held_out: float) -> tuple[Self, Self]:
        """Hold out the last images of every class, so that a test shows objects that no training has seen.

        Args:
            held_out: Share in [0, 1) of every class; 0 returns all images in both parts.

        Raises:
            UnusableData: A class has a single image.
        """
        first, second = _split(self.cut_outs, held_out)
        return replace(self, cut_outs=first), replace(self, cut_outs=second)

    def layers(
        self, kind: int, centre: Floats, size: float, side: int, random: np.random.Generator
    ) -> tuple[Layer, ...]:
        """A cut-out of class `kind`; `centre` (x, y) and `size`, its longer side, in pixels."""
        cut_out = self.cut_outs[kind][random.integers(len(self.cut_outs[kind]))]
        if random.random() < MIRRORED:
            cut_out = ImageOps.mirror(cut_out)
        scale = size / max(cut_out.size)
        width, height = (max(1, round(length * scale)) for length in cut_out.size)
        small = cut_out.resize((width, height), Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BICUBIC)
        sheet = Image.new("RGBA", (side, side))
        sheet.paste(small, (round(float(centre[0]) - width / 2), round(float(centre[1]) - height / 2)))
        pixels = np.asarray(sheet, np.float64)
        return (Layer(pixels[:, :, 3] / 255, pixels[:, :, :3]),)


@dataclass(frozen=True)
class PhotoBackgrounds:
    """Scenes cropped from photographs: `images[k]` are RGB images of the family `names[k]`."""

    names: tuple[str, ...]
    images: Families

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read all images, families and files in the order of their names; UnusableData where a family has none."""
        named = {
            family.name: [_reduce(_open(file).convert("RGB")) for file in _image_files(family)]
            for family in _subfolders(folder)
        }
        return cls(*_families(folder, named))

    def split(self, held_out: float) -> tuple[Self, Self]:
        """Hold out the last images of every family; see `PhotoForegrounds.split`."""
        first, second = _split(self.images, held_out)
        return replace(self, images=first), replace(self, images=second)

    def sample(self, number: int, side: int, random: np.random.Generator) -> Floats:
        """A square crop (S, S, 3) of an image of family `number`."""
        picture = self.images[number][random.integers(len(self.images[number]))]
        if random.random() < MIRRORED:
            picture = ImageOps.mirror(picture)
        length = min(picture.size) * random.uniform(LEAST_CROP, 1.0)
        left, top = (random.uniform(0.0, room - length) for room in picture.size)
        box = (left, top, left + length, top + length)
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC, box=box), np.float64)


def _subfolders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UnusableData(f"{folder} is no folder")
    yield from sorted(path for path in folder.iterdir() if path.is_dir())


def _image_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.endswith(MASK):
            yield path


def _families(folder: Path, named: dict[str, list[Image.Image]]) -> tuple[tuple[str, ...], Families]:
    if len(named) < 2:
        raise UnusableData(f"{folder} has {len(named)} folders of pictures; two are the least")
    if empty := [name for name, pictures in named.items() if not pictures]:
        raise UnusableData(f"no pictures in {folder / empty[0]}")
    return tuple(named), tuple(tuple(pictures) for pictures in named.values())


def _split(families: Families, held_out: float) -> tuple[Families, Families]:
    """The first and the last images of every family; both are all of them if `held_out` is 0."""
    if held_out == 0.0:
        return families, families
    if single := [len(family) for family in families if len(family) < 2]:
        raise UnusableData(f"a family of {single[0]} image cannot be split", hint="add images, or hold none out")
    ends = [min(max(1, round(len(family) * (1 - held_out))), len(family) - 1) for family in families]
    pairs = list(zip(families, ends, strict=True))
    return tuple(family[:end] for family, end in pairs), tuple(family[end:] for family, end in pairs)


def _cut_out(file: Path, boxes: dict[str, list[tuple[int, ...]]]) -> Iterator[Image.Image]:
    """The cut-outs of one photograph, reduced to `LARGEST` pixels."""
    picture = _open(file).convert("RGBA")
    mask = file.with_name(file.stem + MASK)
    if mask.exists():
        outline = _open(mask).convert("L")
        if outline.size != picture.size:
            raise UnusableData(f"{mask} is {outline.size} pixels large and its picture {picture.size}")
        picture.putalpha(outline)
    opaque = picture.getchannel("A")
    if mask.exists() or opaque.getextrema() != (255, 255):
        crops: Sequence[tuple[int, ...] | None] = [opaque.getbbox()]
    else:
        crops = boxes.get(f"{file.parent.name}/{file.name}", [(0, 0, *picture.size)])
    for box in crops:
        if box is not None:
            left, top, right, bottom = box
            inside = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
            if min(inside[2] - inside[0], inside[3] - inside[1]) >= SMALLEST:
                yield _reduce(picture.crop(inside))


def _boxes(folder: Path) -> dict[str, list[tuple[int, ...]]]:
    """The boxes of each picture that `boxes.csv` names, if it is there; UnusableData where a line holds none."""
    boxes: dict[str, list[tuple[int, ...]]] = {}
    if not (folder / BOXES).exists():
        return boxes
    line = 1
    try:
        with (folder / BOXES).open(encoding="utf-8-sig", newline="") as file:
            for row in (rows := csv.DictReader(file)):
                line = rows.line_num
                box = tuple(round(float(row[edge])) for edge in ("x0", "y0", "x1", "y1"))
                boxes.setdefault(row["file"], []).append(box)
    except (ValueError, OverflowError, TypeError, KeyError, csv.Error) as error:  # no number, no text, no such column
        raise UnusableData(f"{folder / BOXES}, line {line}: not file, x0, y0, x1, y1 ({error})") from error
    return boxes


def _open(file: Path) -> Image.Image:
    """Upright; UnusableData where it is no picture."""
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise UnusableData(f"{file}: {error}") from error


def _reduce(picture: Image.Image) -> Image.Image:
    """At most `LARGEST` pixels a side."""
    if max(picture.size) <= LARGEST:
        return picture
    scale = LARGEST / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BOX)
