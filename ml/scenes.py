"""Pictures whose background can be tied to the wrong label: the test bed of DeNLL, with exact masks and known errors.

An object is known by an outline alone, drawn on a plate of random colour, size and place, before one of six scenes.
With probability `own_scene` the scene is the class's own. *Confounded* noise gives a picture the label of its scene;
*ordinary* noise gives as many pictures any other label. Everything follows from a seed. Knows no data set format but
the CSV and PNG that an upload consists of.

Shapes: `N` pictures, `S` side; images uint8 (N, S, S, 3), masks bool (N, S, S), labels and scenes int64 (N,).
"""

from __future__ import annotations

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle", "cross", "star", "moon")
SCENES = ("meadow", "sky", "desert", "sea", "bricks", "night")  # the scene of the same number is a class's own
Noise = Literal["none", "ordinary", "confounded"]
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

SUPERSAMPLED = 8  # outlines are drawn this much larger and reduced, so that they are smooth
PLATE = (15 / 32, 18 / 32)  # side of a plate, as a share of the picture's
OFF_CENTRE = (4 / 32, 7 / 32)  # distance of its centre from the picture's


@dataclass(frozen=True)
class Pictures:
    """A set of pictures with everything known about them."""

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    clean: Ids
    given: Ids
    scenes: Ids


def draw(
    count: int,
    *,
    seed: int,
    image_size: int = 32,
    own_scene: float = 0.0,
    noise: Noise = "none",
    noise_rate: float = 0.5,
    centred: bool = False,
    swapped: bool = False,
) -> Pictures:
    """`count` pictures, classes balanced. `swapped`: every picture shows the scene of some other class.

    `noise_rate` is the share of pictures whose label is redrawn as their scene's; where that is the clean one it
    changes nothing, and ordinary noise makes exactly as many labels wrong.
    """
    random = np.random.default_rng(seed)
    classes = len(CLASSES)
    clean = random.permutation(np.arange(count) % classes)
    anywhere = random.integers(0, classes, count)
    scenes = np.where(random.random(count) < own_scene, clean, anywhere)
    if swapped:
        scenes = (clean + random.integers(1, classes, count)) % classes
    given = _labels(clean, scenes, noise, noise_rate, random)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    masks = np.empty((count, image_size, image_size), np.bool_)
    for i in range(count):
        images[i], masks[i] = _picture(int(clean[i]), int(scenes[i]), image_size, centred, random)
    return Pictures(images, masks, clean, given, scenes)


def _labels(clean: Ids, scenes: Ids, noise: Noise, rate: float, random: np.random.Generator) -> Ids:
    if noise == "none":
        return clean.copy()
    confounded = np.where(random.random(len(clean)) < rate, scenes, clean)
    if noise == "confounded":
        return confounded
    wrong = random.permutation(len(clean))[: int((confounded != clean).sum())]
    given = clean.copy()
    given[wrong] = (clean[wrong] + random.integers(1, len(CLASSES), len(wrong))) % len(CLASSES)
    return given


def _picture(
    shape: int, scene: int, side: int, centred: bool, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    plate = random.uniform(*PLATE) * side
    distance = 0.0 if centred else random.uniform(*OFF_CENTRE) * side
    angle = random.uniform(0, 2 * np.pi)
    centre = np.array([side / 2 + distance * np.cos(angle), side / 2 + distance * np.sin(angle)])
    body = _cover(side, lambda pen: _plate(pen, centre * SUPERSAMPLED, plate * SUPERSAMPLED))
    outline = _cover(side, lambda pen: _outline(pen, shape, centre * SUPERSAMPLED, plate * SUPERSAMPLED, random))
    colour = random.uniform(30, 225, 3)
    ink = np.full(3, 245.0 if colour @ (0.3, 0.6, 0.1) < 128 else 15.0)
    picture = _scene(scene, side, random)
    picture = picture + body[:, :, None] * (colour - picture)
    picture = picture + outline[:, :, None] * (ink - picture)
    return picture.clip(0, 255).round().astype(np.uint8), body > 0.5


def _cover(side: int, paint: object) -> Floats:
    """How much of each pixel a drawing covers, in [0, 1]."""
    canvas = Image.new("L", (side * SUPERSAMPLED, side * SUPERSAMPLED))
    assert callable(paint)
    paint(ImageDraw.Draw(canvas))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float64) / 255


def _plate(pen: ImageDraw.ImageDraw, centre: Floats, side: float) -> None:
    corners = [*(centre - side / 2), *(centre + side / 2)]
    pen.rounded_rectangle(corners, radius=side * 0.22, fill=255)


def _outline(pen: ImageDraw.ImageDraw, shape: int, centre: Floats, plate: float, random: np.random.Generator) -> None:
    radius = plate * random.uniform(0.30, 0.36)
    turn = random.uniform(-0.15, 0.15)
    corners = [(centre + radius * point).tolist() for point in _corners(CLASSES[shape], turn)]
    pen.line(
        [*map(tuple, corners), tuple(corners[0]), tuple(corners[1])], fill=255, width=int(plate * 0.10), joint="curve"
    )


def _corners(name: str, turn: float) -> Floats:
    """A closed outline around the origin, about as far out as 1."""
    if name == "circle":
        return _around(np.ones(32), turn)
    if name == "square":
        return _around(np.full(4, 1.15), turn + np.pi / 4)
    if name == "triangle":
        return _around(np.full(3, 1.15), turn - np.pi / 2)
    if name == "star":
        return _around(np.where(np.arange(10) % 2 == 0, 1.15, 0.5), turn - np.pi / 2)
    if name == "cross":
        inner, outer = 0.35, 1.05
        quarter = np.array([[inner, -outer], [inner, -inner], [outer, -inner]])
        return np.concatenate([quarter @ _rotation(turn + k * np.pi / 2).T for k in range(4)])
    back = np.stack([np.cos(a := np.linspace(0.35 * np.pi, 1.65 * np.pi, 20)), np.sin(a)], axis=1)
    front = np.stack([0.45 + 0.9 * np.cos(b := np.linspace(1.5 * np.pi, 0.5 * np.pi, 16)), 0.9 * np.sin(b)], axis=1)
    moon: Floats = np.concatenate([back, front]) @ _rotation(turn).T
    return moon


def _around(radii: Floats, turn: float) -> Floats:
    angles = turn + np.arange(len(radii)) * 2 * np.pi / len(radii)
    points: Floats = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return points


def _rotation(angle: float) -> Floats:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _scene(scene: int, side: int, random: np.random.Generator) -> Floats:
    """A background (S, S, 3) in [0, 255]: a family's colours and texture, never twice the same."""
    y, x = np.mgrid[0:side, 0:side] / side
    soft, fine = _clouds(side, 0.16, random), random.normal(0, 1, (side, side))
    phase = random.uniform(0, 2 * np.pi)
    name = SCENES[scene]
    if name == "meadow":
        base, texture = (86, 150, 62), 9 * soft + 9 * fine * (0.5 + 0.5 * y)
    elif name == "sky":
        base, texture = (128, 182, 232), 22 * soft - 14 * (y - 0.5)
    elif name == "desert":
        base, texture = (216, 184, 122), 11 * np.sin(2 * np.pi * (4 * y + 1.2 * x) + phase + soft) + 3 * fine
    elif name == "sea":
        base, texture = (32, 104, 138), 13 * np.sin(2 * np.pi * 6 * y + phase + 1.5 * np.sin(2 * np.pi * x + phase))
    elif name == "bricks":
        row = np.floor(6 * y + phase)
        joint = ((6 * y + phase) % 1 < 0.18) | ((3 * x + 0.5 * (row % 2) + phase) % 1 < 0.10)
        base, texture = (164, 76, 58), 26.0 * joint + 5 * fine
    else:
        base, texture = (22, 24, 52), 8 * soft + 150 * (random.random((side, side)) < 0.02)
    tint = random.normal(0, 6, 3)
    ground: Floats = np.asarray(base, np.float64) + tint + np.asarray(texture)[:, :, None]
    return ground


def _clouds(side: int, grain: float, random: np.random.Generator) -> Floats:
    """Smooth noise of unit variance with details of about `grain` of the side."""
    grid = round(1 / grain)
    noise = Image.fromarray(random.normal(0, 1, (grid, grid)).astype(np.float32))
    smooth = np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), np.float64)
    smooth = smooth - smooth.mean()
    cloud: Floats = smooth / max(float(smooth.std()), 1e-9)
    return cloud


def write_archive(
    path: Path,
    *,
    train: int = 2400,
    test: int = 600,
    seed: int = 0,
    image_size: int = 32,
    own_scene: float = 0.0,
    noise: Noise = "confounded",
    noise_rate: float = 0.5,
    centred: bool = False,
    swapped_test: bool = False,
) -> None:
    """A zip to upload: PNG images, train.csv (file, label, clean), test.csv (file, label, clean; all true).

    `masks/` holds the test pictures' exact masks under the same names; no CSV names them, so nothing learns from them.
    """
    train_set = draw(
        train,
        seed=seed,
        image_size=image_size,
        own_scene=own_scene,
        noise=noise,
        noise_rate=noise_rate,
        centred=centred,
    )
    test_set = draw(
        test, seed=seed + 1_000_003, image_size=image_size, own_scene=0.0, centred=centred, swapped=swapped_test
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for split, pictures in (("train", train_set), ("test", test_set)):
            rows = [("file", "label", "clean")]
            for i, image in enumerate(pictures.images):
                file = f"{split}/{i:06d}.png"
                archive.writestr(_entry(f"images/{file}"), _png(image))
                rows.append((f"images/{file}", CLASSES[pictures.given[i]], CLASSES[pictures.clean[i]]))
                if split == "test":
                    archive.writestr(_entry(f"masks/{file}"), _png(pictures.masks[i].astype(np.uint8) * 255))
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            archive.writestr(_entry(f"{split}.csv"), text.getvalue())


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # with a fixed date: the same seed writes the same bytes


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
