"""Pictures whose background can be tied to the wrong label: the test bed of DeNLL, with exact masks and known errors.

An object, known by itself alone, stands before one of as many scenes as there are classes. With probability
`own_scene` the scene is the class's own. *Confounded* noise gives a picture the label of its scene; *ordinary* noise
gives as many pictures any other label. Objects and scenes are drawn (`ml.scenes.drawn`) or photographs
(`ml.scenes.photographs`); everything follows from a seed. Knows no data set format but the CSV and PNG that an upload
consists of.

Shapes: `N` pictures, `S` side; images uint8 (N, S, S, 3), masks bool (N, S, S), labels and scenes int64 (N,).
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.errors import UnusableData
from ml.scenes.drawn import Floats, Grounds, Layer, Plates

Noise = Literal["none", "ordinary", "confounded"]
Ids = NDArray[np.int64]

CLASSES, SCENES = Plates.classes, Grounds.names  # of the drawn ones; the scene of the same number is a class's own
ALIKE, VARIED = (15 / 32, 18 / 32), (0.25, 0.7)  # sizes of an object, as shares of the picture's side
OFF_CENTRE = (4 / 32, 7 / 32)  # distance of its centre from the picture's
SMALLEST_SIDE = 16  # pixels
HELD_OUT = 0.25  # of the photographs: shown in the test alone
TEST_SEED = 1_000_003  # further than training and test seeds are apart by choice


class Objects(Protocol):
    """What stands in a picture; the first layer's cover is the object's mask."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def parted(self, held_out: float) -> tuple[Self, Self]: ...

    def layers(
        self, kind: int, centre: Floats, size: float, side: int, random: np.random.Generator
    ) -> tuple[Layer, ...]: ...


class Places(Protocol):
    """What is behind it."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def parted(self, held_out: float) -> tuple[Self, Self]: ...

    def view(self, number: int, side: int, random: np.random.Generator) -> Floats: ...


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
    sizes: tuple[float, float] = ALIKE,
    objects: Objects | None = None,
    places: Places | None = None,
) -> Pictures:
    """`count` pictures, classes balanced. `swapped`: every picture shows the scene of some other class.

    `noise_rate` is the share of pictures whose label is redrawn as their scene's; where that is the clean one it
    changes nothing, and ordinary noise makes exactly as many labels wrong. `sizes`: the least and the largest object,
    as shares of the side; no object leaves the picture, so a large one stands nearer to the middle. Raises
    UnusableData where there are fewer scenes than classes, the picture is smaller than 16 pixels or a share is none.
    """
    objects, places = _checked(image_size, sizes, objects, places)
    for name, share in (("own_scene", own_scene), ("noise_rate", noise_rate)):
        _check_share(name, share)
    if count < 0 or seed < 0:
        raise UnusableData(f"neither the number of pictures ({count}) nor the seed ({seed}) is below 0")
    if noise not in get_args(Noise):
        raise UnusableData(f"no such noise: {noise}", hint=f"one of {', '.join(get_args(Noise))}")
    random = np.random.default_rng(seed)
    classes = len(objects.classes)
    clean = random.permutation(np.arange(count) % classes)
    anywhere = random.integers(0, classes, count)
    scenes = np.where(random.random(count) < own_scene, clean, anywhere)
    if swapped:
        scenes = (clean + random.integers(1, classes, count)) % classes
    given = _labels(clean, scenes, noise, noise_rate, classes, random)
    images = np.empty((count, image_size, image_size, 3), np.uint8)
    masks = np.empty((count, image_size, image_size), np.bool_)
    for i in range(count):
        layers = _object(objects, int(clean[i]), image_size, sizes, centred, random)
        images[i], masks[i] = _composed(places.view(int(scenes[i]), image_size, random), layers)
    return Pictures(images, masks, clean, given, scenes)


def before_every_scene(
    kind: int,
    *,
    seed: int,
    image_size: int = 32,
    centred: bool = False,
    sizes: tuple[float, float] = ALIKE,
    objects: Objects | None = None,
    places: Places | None = None,
) -> Pictures:
    """One object of class `kind`, the same pixels at the same place, before a scene of every class in their order."""
    objects, places = _checked(image_size, sizes, objects, places)
    random = np.random.default_rng(seed)
    layers = _object(objects, kind, image_size, sizes, centred, random)
    numbers = np.arange(len(objects.classes))
    pairs = [_composed(places.view(int(number), image_size, random), layers) for number in numbers]
    clean = np.full(len(numbers), kind)
    return Pictures(
        np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs]), clean, clean, numbers
    )


def _checked(
    image_size: int, sizes: tuple[float, float], objects: Objects | None, places: Places | None
) -> tuple[Objects, Places]:
    """What the pictures are made of: drawn, unless said otherwise."""
    objects, places = objects or Plates(), places or Grounds()
    if image_size < SMALLEST_SIDE:
        raise UnusableData(
            f"pictures of {image_size} pixels are too small to tell objects; {SMALLEST_SIDE} are the least"
        )
    if not 0.0 < sizes[0] <= sizes[1] <= 1.0:
        raise UnusableData(f"sizes are two shares of the side, the smaller first, not {sizes[0]} and {sizes[1]}")
    if len(places.names) < len(objects.classes):
        raise UnusableData(f"{len(objects.classes)} classes need as many scenes; there are {len(places.names)}")
    return objects, places


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise UnusableData(f"{name} is a share between 0 and 1, not {share}")


def _labels(clean: Ids, scenes: Ids, noise: Noise, rate: float, classes: int, random: np.random.Generator) -> Ids:
    if noise == "none":
        return clean.copy()
    confounded = np.where(random.random(len(clean)) < rate, scenes, clean)
    if noise == "confounded":
        return confounded
    wrong = random.permutation(len(clean))[: int((confounded != clean).sum())]
    given = clean.copy()
    given[wrong] = (clean[wrong] + random.integers(1, classes, len(wrong))) % classes
    return given


def _object(
    objects: Objects, kind: int, side: int, sizes: tuple[float, float], centred: bool, random: np.random.Generator
) -> tuple[Layer, ...]:
    size = random.uniform(*sizes) * side
    distance = 0.0 if centred else random.uniform(*OFF_CENTRE) * side
    angle = random.uniform(0, 2 * np.pi)
    centre = np.array([side / 2 + distance * np.cos(angle), side / 2 + distance * np.sin(angle)])
    return objects.layers(kind, centre.clip(size / 2, side - size / 2), size, side, random)


def _composed(picture: Floats, layers: tuple[Layer, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The layers on a scene, and the pixels of which the object covers more than half."""
    for cover, colour in layers:
        picture = picture + cover[:, :, None] * (colour - picture)
    return picture.clip(0, 255).round().astype(np.uint8), layers[0].cover > 0.5


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
    sizes: tuple[float, float] = ALIKE,
    objects: Objects | None = None,
    places: Places | None = None,
    held_out: float = HELD_OUT,
) -> tuple[Pictures, Pictures]:
    """A zip to upload: PNG images, train.csv (file, label, clean), test.csv (file, label, clean; all true).

    Beside them lies what only a measurement may know: `masks/`, the exact masks under the pictures' names, and
    truth.csv (file, clean, scene, x0, y0, x1, y1), the mask's box in pixels. An upload reads neither. `held_out` is the
    share of photographs that only the test shows; 0 shows the same ones. Returns the training and the test pictures.
    """
    first, second = _checked(image_size, sizes, objects, places)
    _check_share("held_out", held_out)
    seen, unseen = zip(first.parted(held_out), second.parted(held_out), strict=True)
    train_set = draw(
        train, seed=seed, image_size=image_size, own_scene=own_scene, noise=noise, noise_rate=noise_rate,
        centred=centred, sizes=sizes, objects=seen[0], places=seen[1],
    )  # fmt: skip
    test_set = draw(
        test, seed=seed + TEST_SEED, image_size=image_size, centred=centred, swapped=swapped_test, sizes=sizes,
        objects=unseen[0], places=unseen[1],
    )  # fmt: skip
    truth: list[Iterable[object]] = [("file", "clean", "scene", "x0", "y0", "x1", "y1")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for split, pictures in (("train", train_set), ("test", test_set)):
            rows: list[Iterable[object]] = [("file", "label", "clean")]
            for i, image in enumerate(pictures.images):
                file = f"{split}/{i:06d}.png"
                clean = first.classes[pictures.clean[i]]
                archive.writestr(_entry(f"images/{file}"), _png(image))
                archive.writestr(_entry(f"masks/{file}"), _png(pictures.masks[i].astype(np.uint8) * 255))
                rows.append((f"images/{file}", first.classes[pictures.given[i]], clean))
                truth.append((f"images/{file}", clean, second.names[pictures.scenes[i]], *box(pictures.masks[i])))
            archive.writestr(_entry(f"{split}.csv"), _table(rows))
        archive.writestr(_entry("truth.csv"), _table(truth))
    return train_set, test_set


def box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask (S, S): the first pixels inside and the first after; zeros of an empty one."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def middles(masks: NDArray[np.bool_]) -> Floats:
    """x, y (N, 2) of the mean of each mask's pixels (N, S, S); NaN of an empty one."""
    cells, area = np.arange(masks.shape[1]), masks.sum(axis=(1, 2)).astype(np.float64)
    area[area == 0] = np.nan
    return np.stack([masks.sum(axis=axis) @ cells / area for axis in (1, 2)], axis=1)


def _table(rows: list[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # with a fixed date: the same seed writes the same bytes


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
