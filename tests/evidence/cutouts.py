"""Objects and scenes cut from the development sets by their masks and boxes, as `python -m ml scenes` reads them.

    python -m tests.evidence.cutouts coco SETS/coco_things OUT
    python -m tests.evidence.cutouts tinyimagenet SETS/tinyimagenet32 OUT
    python -m ml scenes photographs.zip --objects OUT/objects --scenes OUT/scenes --size 96

The sets are for research alone: what this writes is used where it was made and never shipped.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LEAST_SHARE, LEAST_PIECES = 0.01, 4  # of a COCO photograph, and of a class, that are worth cutting out
LEAST_FULL = 0.25  # of its box: less is scattered over the photograph
CROWD = 255  # a region that COCO's masks leave open
SIDE = 256  # pixels that are kept of a COCO photograph's longer side
FINEST_RADIUS = 3  # pixels of the blur that fills a removed object nearest to its edge; it doubles inwards
LEAST_WEIGHT = 0.02  # of known pixels within the blur; a pixel with less waits for a larger radius
SMALLEST_BOX = 8  # pixels
# Objects that a box cuts out well, and classes that are places: as many of one as of the other.
TINY_OBJECTS = ("goldfish", "ladybug", "orange", "teapot", "monarch", "sunglasses")
TINY_PLACES = ("alp", "barn", "butcher_shop", "coral_reef", "seashore", "spider_web")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.cutouts", description=__doc__)
    parser.add_argument("kind", choices=("coco", "tinyimagenet"))
    parser.add_argument("source", type=Path, help="the unpacked development set")
    parser.add_argument("out", type=Path, help="gets objects/ and scenes/")
    options = parser.parse_args()
    {"coco": coco, "tinyimagenet": tiny_imagenet}[options.kind](options.source, options.out)


def coco(source: Path, out: Path) -> None:
    """Objects by their pixel masks; scenes are the photographs without them, in as many families as classes."""
    names = {int(row["id"]): row["name"] for row in rows(source / "classes.csv")}
    pieces: dict[str, list[Image.Image]] = {}
    grounds = []
    for row in rows(source / "images.csv"):
        photograph, mask = (Image.open(source / row[column]) for column in ("file", "mask"))
        width, height = (round(length * SIDE / max(photograph.size)) for length in photograph.size)
        small = (width, height)
        picture = photograph.convert("RGB").resize(small)
        ids = np.asarray(mask.resize(small, Image.Resampling.NEAREST))
        for number in sorted(set(np.unique(ids)) - {0, CROWD}):
            alone = ids == number
            piece = cut(picture, alone)
            if alone.mean() >= LEAST_SHARE and alone.sum() >= LEAST_FULL * piece.width * piece.height:
                pieces.setdefault(names[int(number)], []).append(piece)
        grounds.append(removed(picture, ids != 0))
    large_families = {name: cut_outs for name, cut_outs in pieces.items() if len(cut_outs) >= LEAST_PIECES}
    for name, cut_outs in large_families.items():
        write(out / "objects" / name, cut_outs)
    for number, family in enumerate(by_colour(grounds, len(large_families))):
        write(out / "scenes" / f"colour-{number}", family)


def tiny_imagenet(source: Path, out: Path) -> None:
    """Objects by their boxes; scenes are photographs of classes that are places."""
    names = {row["wnid"]: row["name"] for row in rows(source / "classes.csv")}
    assert set(TINY_OBJECTS + TINY_PLACES) <= set(names.values())
    boxed: dict[str, list[Image.Image]] = {name: [] for name in TINY_OBJECTS}
    places: dict[str, list[Image.Image]] = {name: [] for name in TINY_PLACES}
    for row in rows(source / "train.csv"):
        name = row["clean"]
        if name in boxed:
            piece = Image.open(source / row["file"]).convert("RGB")
            left, top, right, bottom = (round(float(row[edge])) for edge in ("x0", "y0", "x1", "y1"))
            piece = piece.crop((left, top, right, bottom))
            if min(piece.size) >= SMALLEST_BOX:
                boxed[name].append(piece)
        elif name in places:
            places[name].append(Image.open(source / row["file"]).convert("RGB"))
    for folder, families in (("objects", boxed), ("scenes", places)):
        for name, cut_outs in families.items():
            write(out / folder / name, cut_outs)


def cut(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """What the mask (H, W) covers, as RGBA, cut to its box."""
    piece = picture.convert("RGBA")
    alpha = Image.fromarray(mask.astype(np.uint8) * 255)
    piece.putalpha(alpha)
    return piece.crop(alpha.getbbox())


def removed(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """The picture with the colours around the mask (H, W) in place of what it covers, coarser the deeper inside."""
    known = (~mask).astype(np.float64)
    pixels = np.asarray(picture, np.float64)
    filled, missing, radius = pixels * known[:, :, None], mask.copy(), FINEST_RADIUS
    while missing.any() and radius < max(picture.size):
        weight = blurred(known, radius)
        reached = missing & (weight > LEAST_WEIGHT)
        for channel in range(3):
            near = blurred(pixels[:, :, channel] * known, radius)
            filled[:, :, channel][reached] = near[reached] / weight[reached]
        missing &= ~reached
        radius *= 2
    return Image.fromarray(filled.clip(0, 255).round().astype(np.uint8))


def blurred(plane: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Three running means of 2 * radius + 1 pixels along each axis of (H, W): nearly a Gaussian."""
    length = 2 * radius + 1
    for axis in (0, 1, 0, 1, 0, 1):
        ends = [(radius + 1, radius) if image_axis == axis else (0, 0) for image_axis in (0, 1)]
        total = np.moveaxis(np.cumsum(np.pad(plane, ends, mode="edge"), axis=axis), axis, 0)
        plane = np.moveaxis(total[length:] - total[:-length], 0, axis) / length
    return plane


def by_colour(pictures: list[Image.Image], count: int) -> list[list[Image.Image]]:
    """`count` families of about the same size: along the main axis of the pictures' mean colours."""
    means = np.array([np.asarray(picture.resize((8, 8))).reshape(-1, 3).mean(axis=0) for picture in pictures])
    centred = means - means.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    order = np.argsort(centred @ axis, kind="stable")
    return [[pictures[i] for i in part] for part in np.array_split(order, count)]


def write(folder: Path, pictures: list[Image.Image]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:04d}.png")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
