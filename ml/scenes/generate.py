"""Synthetic images whose background can be tied to the wrong label: tests of DeNLL with exact masks and known errors.

An object, recognisable by itself, stands before a scene. There are at least as many families of scenes as classes, and
the scene of a class's own number is its own. With probability `own_scene` an object stands before its own scene.
*Confounded* noise gives an image the label of its scene; *ordinary* noise gives as many images any other label. Objects
and scenes are drawn (`ml.scenes.drawn`) or photographs (`ml.scenes.photographs`); everything follows from a seed.

Shapes: `N` images, `S` side; images uint8 (N, S, S, 3), masks bool (N, S, S), labels and scenes int64 (N,).
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml.errors import UnusableData
from ml.scenes.drawn import DrawnBackgrounds, DrawnForegrounds
from ml.scenes.protocols import Backgrounds, Floats, Foregrounds, Layer

Noise = Literal["none", "ordinary", "confounded"]
Ids = NDArray[np.int64]

CLASSES, SCENES = DrawnForegrounds.classes, DrawnBackgrounds.names  # of drawn images
ALIKE, VARIED = (15 / 32, 18 / 32), (0.25, 0.7)  # least and largest size of an object, as shares of the image's side
OFF_CENTRE = (4 / 32, 7 / 32)  # least and largest distance of its centre from the image's, as shares of the side
SMALLEST_SIDE = 16  # pixels
HELD_OUT = 0.25  # share of the photographs that only the test shows
TEST_SEED = 1_000_003  # added to the seed for test images; larger than seeds of one experiment are apart


@dataclass(frozen=True)
class SceneImages:
    """Images with everything known of them."""

    images: NDArray[np.uint8]  # (N, S, S, 3)
    masks: NDArray[np.bool_]  # (N, S, S), pixels of which the object covers more than half
    clean: Ids  # int64 (N,), the objects' classes
    given_labels: Ids  # int64 (N,), the labels with noise
    scenes: Ids  # int64 (N,), numbers of the backgrounds' families


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
    foregrounds: Foregrounds | None = None,
    backgrounds: Backgrounds | None = None,
) -> SceneImages:
    """Make images with balanced classes.

    Args:
        count: N.
        seed: Not negative; determines every pixel and label.
        image_size: S, at least 16.
        own_scene: Probability in [0, 1] that an object stands before the scene of its class; the others stand before a
            random scene, which may be the same.
        noise: Kind of label noise.
        noise_rate: Share in [0, 1] of images whose label is redrawn as their scene's. That changes nothing where the
            scene is the class's own; ordinary noise makes exactly as many labels wrong as confounded noise would.
        centred: Objects stand in the middle.
        swapped: Every object stands before the scene of another class; overrides `own_scene`.
        sizes: Least and largest object, as shares of the side in (0, 1]. No object leaves the image, so large ones
            stand nearer to the middle.
        foregrounds: Objects; drawn ones by default.
        backgrounds: Scenes; drawn ones by default. At least as many families as there are classes.

    Raises:
        UnusableData: An argument is out of its range.
    """
    foregrounds, backgrounds = _check_sources(image_size, sizes, foregrounds, backgrounds)
    for name, share in (("own_scene", own_scene), ("noise_rate", noise_rate)):
        _check_share(name, share)
    if count < 0 or seed < 0:
        raise UnusableData(f"neither the number of images ({count}) nor the seed ({seed}) may be negative")
    if noise not in get_args(Noise):
        raise UnusableData(f"no such noise: {noise}", hint=f"one of {', '.join(get_args(Noise))}")
    random = np.random.default_rng(seed)
    classes = len(foregrounds.classes)

    # Classes, scenes and labels of all images come first, so that they do not depend on how images are drawn.
    clean = random.permutation(np.arange(count) % classes)
    random_scenes = random.integers(0, classes, count)
    scenes = np.where(random.random(count) < own_scene, clean, random_scenes)
    if swapped:
        scenes = (clean + random.integers(1, classes, count)) % classes
    given_labels = _inject_noise(clean, scenes, noise, noise_rate, classes, random)

    images = np.empty((count, image_size, image_size, 3), np.uint8)
    masks = np.empty((count, image_size, image_size), np.bool_)
    for i in range(count):
        layers = _place_object(foregrounds, int(clean[i]), image_size, sizes, centred, random)
        images[i], masks[i] = _compose(backgrounds.sample(int(scenes[i]), image_size, random), layers)
    return SceneImages(images, masks, clean, given_labels, scenes)


def before_every_scene(
    kind: int,
    *,
    seed: int,
    image_size: int = 32,
    centred: bool = False,
    sizes: tuple[float, float] = ALIKE,
    foregrounds: Foregrounds | None = None,
    backgrounds: Backgrounds | None = None,
) -> SceneImages:
    """One object of class `kind`, the same pixels at the same position, before a scene of every class in their order.

    Other arguments as in `draw`. Returns as many images as there are classes.
    """
    foregrounds, backgrounds = _check_sources(image_size, sizes, foregrounds, backgrounds)
    random = np.random.default_rng(seed)
    layers = _place_object(foregrounds, kind, image_size, sizes, centred, random)
    numbers = np.arange(len(foregrounds.classes))
    composed = [_compose(backgrounds.sample(int(number), image_size, random), layers) for number in numbers]
    images, masks = (np.stack(arrays) for arrays in zip(*composed, strict=True))
    clean = np.full(len(numbers), kind)
    return SceneImages(images, masks, clean, clean, numbers)


def _check_sources(
    image_size: int,
    sizes: tuple[float, float],
    foregrounds: Foregrounds | None,
    backgrounds: Backgrounds | None,
) -> tuple[Foregrounds, Backgrounds]:
    """Foregrounds and backgrounds, drawn ones where None; UnusableData if they or the sizes do not fit."""
    foregrounds, backgrounds = foregrounds or DrawnForegrounds(), backgrounds or DrawnBackgrounds()
    if image_size < SMALLEST_SIDE:
        raise UnusableData(
            f"images of {image_size} pixels are too small to tell objects; {SMALLEST_SIDE} are the least"
        )
    if not 0.0 < sizes[0] <= sizes[1] <= 1.0:
        raise UnusableData(f"sizes are two shares of the side, the smaller first, not {sizes[0]} and {sizes[1]}")
    if len(backgrounds.names) < len(foregrounds.classes):
        raise UnusableData(
            f"{len(foregrounds.classes)} classes need as many scenes; there are {len(backgrounds.names)}"
        )
    return foregrounds, backgrounds


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise UnusableData(f"{name} is a share between 0 and 1, not {share}")


def _inject_noise(clean: Ids, scenes: Ids, noise: Noise, rate: float, classes: int, random: np.random.Generator) -> Ids:
    if noise == "none":
        return clean.copy()
    confounded = np.where(random.random(len(clean)) < rate, scenes, clean)
    if noise == "confounded":
        return confounded
    wrong = random.permutation(len(clean))[: int((confounded != clean).sum())]
    noisy = clean.copy()
    noisy[wrong] = (clean[wrong] + random.integers(1, classes, len(wrong))) % classes
    return noisy


def _place_object(
    foregrounds: Foregrounds,
    kind: int,
    side: int,
    sizes: tuple[float, float],
    centred: bool,
    random: np.random.Generator,
) -> tuple[Layer, ...]:
    """An object of random size at a random position, wholly inside the image."""
    size = random.uniform(*sizes) * side
    distance = 0.0 if centred else random.uniform(*OFF_CENTRE) * side
    angle = random.uniform(0, 2 * np.pi)
    centre = np.array([side / 2 + distance * np.cos(angle), side / 2 + distance * np.sin(angle)])
    return foregrounds.layers(kind, centre.clip(size / 2, side - size / 2), size, side, random)


def _compose(background: Floats, layers: tuple[Layer, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The image, and its mask: the pixels of which the object covers more than half."""
    image = background
    for cover, colour in layers:
        image = image + cover[:, :, None] * (colour - image)
    return image.clip(0, 255).round().astype(np.uint8), layers[0].cover > 0.5


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
    foregrounds: Foregrounds | None = None,
    backgrounds: Backgrounds | None = None,
    held_out: float = HELD_OUT,
) -> tuple[SceneImages, SceneImages]:
    """Write a zip to upload: PNG images, train.csv and test.csv (file, label, clean; all test labels are clean).

    An upload does not read what is beside them for measuring: `masks/`, the exact masks under the images' names, and
    truth.csv (file, clean, scene, x0, y0, x1, y1) with the masks' boxes in pixels.

    Args:
        path: Of the zip; an existing file is overwritten.
        train: Number of training images.
        test: Number of test images.
        swapped_test: Test images show the scene of another class.
        held_out: Share in [0, 1] of the photographs that only the test shows; 0 shows all of them in both.

    Other arguments as in `draw`; `own_scene` and the noise are those of the training images.

    Returns:
        Training and test images.

    Raises:
        UnusableData: An argument is out of its range.
    """
    foregrounds, backgrounds = _check_sources(image_size, sizes, foregrounds, backgrounds)
    _check_share("held_out", held_out)
    (train_foregrounds, test_foregrounds), (train_backgrounds, test_backgrounds) = (
        foregrounds.split(held_out),
        backgrounds.split(held_out),
    )
    train_set = draw(
        train, seed=seed, image_size=image_size, own_scene=own_scene, noise=noise, noise_rate=noise_rate,
        centred=centred, sizes=sizes, foregrounds=train_foregrounds, backgrounds=train_backgrounds,
    )  # fmt: skip
    test_set = draw(
        test, seed=seed + TEST_SEED, image_size=image_size, centred=centred, swapped=swapped_test, sizes=sizes,
        foregrounds=test_foregrounds, backgrounds=test_backgrounds,
    )  # fmt: skip
    truth: list[Iterable[object]] = [("file", "clean", "scene", "x0", "y0", "x1", "y1")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for split, scene_images in (("train", train_set), ("test", test_set)):
            rows: list[Iterable[object]] = [("file", "label", "clean")]
            for i, image in enumerate(scene_images.images):
                file, mask = f"{split}/{i:06d}.png", scene_images.masks[i]
                clean = foregrounds.classes[scene_images.clean[i]]
                scene = backgrounds.names[scene_images.scenes[i]]
                archive.writestr(_entry(f"images/{file}"), _png(image))
                archive.writestr(_entry(f"masks/{file}"), _png(mask.astype(np.uint8) * 255))
                rows.append((f"images/{file}", foregrounds.classes[scene_images.given_labels[i]], clean))
                truth.append((f"images/{file}", clean, scene, *mask_box(mask)))
            archive.writestr(_entry(f"{split}.csv"), _table(rows))
        archive.writestr(_entry("truth.csv"), _table(truth))
    return train_set, test_set


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of a mask (S, S): the first pixels inside and the first after; zeros of an empty one."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_centres(masks: NDArray[np.bool_]) -> Floats:
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
