"""Scenes: exact masks, known errors, confounding only where it is set, and everything from a seed."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import __main__ as command
from ml import errors
from ml.scenes import generate
from ml.scenes.protocols import Floats

ROUNDING = 1 / 255  # of two pixels


class GreyBackgrounds:
    """Scenes of one grey each, so that the share of background in a pixel is known."""

    def __init__(self, *greys: float) -> None:
        self.names = tuple(f"grey {grey}" for grey in greys)
        self._greys = greys

    def split(self, held_out: float) -> tuple[GreyBackgrounds, GreyBackgrounds]:
        return self, self

    def sample(self, number: int, side: int, random: np.random.Generator) -> Floats:
        return np.full((side, side, 3), self._greys[number])


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others() -> None:
    one, again, other = (generate.draw(12, seed=seed, noise="confounded") for seed in (3, 3, 4))

    assert (one.images == again.images).all()
    assert (one.given_labels == again.given_labels).all()
    assert (one.images != other.images).any()


@pytest.mark.parametrize("image_size", [16, 32, 80])
def test_masks_cover_the_plate_off_centre_at_any_size(image_size: int) -> None:
    pictures = generate.draw(24, seed=1, image_size=image_size)
    side = np.sqrt(pictures.masks.sum(axis=(1, 2))) / image_size
    grid = (np.arange(image_size) + 0.5) / image_size - 0.5
    x = (pictures.masks.sum(axis=1) * grid).sum(axis=1) / pictures.masks.sum(axis=(1, 2))
    y = (pictures.masks.sum(axis=2) * grid).sum(axis=1) / pictures.masks.sum(axis=(1, 2))

    assert ((side > 12 / 32) & (side < 19 / 32)).all()
    assert ((np.hypot(x, y) > 3 / 32) & (np.hypot(x, y) < 8 / 32)).all()


@pytest.mark.parametrize("image_size", [32, 96])
def test_sizes_vary_as_asked_and_no_object_leaves_its_picture(image_size: int) -> None:
    pictures = generate.draw(60, seed=1, image_size=image_size, sizes=generate.VARIED)
    boxes = np.array([generate.mask_box(mask) for mask in pictures.masks])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]

    least, largest = generate.VARIED
    assert (np.abs(width - height) <= 1).all()  # a plate cut by the picture's edge would not be square
    assert width.min() < (least + 0.1) * image_size
    assert width.max() > (largest - 0.1) * image_size
    assert width.max() <= largest * image_size + 1


@pytest.mark.parametrize("image_size", [32, 96])
def test_a_mask_is_every_pixel_of_which_the_object_covers_more_than_half(image_size: int) -> None:
    """The same object before black and before white: what does not change is the object."""
    greys = GreyBackgrounds(0.0, 255.0, 0.0, 255.0, 0.0, 255.0)
    for kind in range(len(generate.CLASSES)):
        scenes = generate.before_every_scene(
            kind, seed=kind, image_size=image_size, sizes=generate.VARIED, backgrounds=greys
        )
        black, white = scenes.images[:2].astype(np.float64)
        covered = 1 - (white - black) / 255

        assert (covered[scenes.masks[0]] >= 0.5 - ROUNDING).all()
        assert (covered[~scenes.masks[0]] <= 0.5 + ROUNDING).all()
        assert (scenes.masks == scenes.masks[0]).all()


def test_one_object_stands_before_every_scene_and_its_pixels_stay_the_same() -> None:
    scenes = generate.before_every_scene(4, seed=9)
    inside = _eroded(scenes.masks[0])

    assert inside.sum() > 80
    assert (scenes.images[:, inside] == scenes.images[:1, inside]).all()
    assert (scenes.clean == 4).all()
    assert scenes.scenes.tolist() == list(range(6))
    assert len({image.tobytes() for image in scenes.images}) == 6


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Without the pixels at its border, of which the scene may be a part."""
    padded = np.pad(mask, 1)
    inner: np.ndarray = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner


def test_a_plate_hides_its_scene_and_the_scene_is_all_there_is_around_it() -> None:
    """Outside the mask, pictures of one scene look alike whatever their class; that is the confounder."""
    pictures = generate.draw(180, seed=2)
    outside = ~pictures.masks
    mean = np.array([image[away].mean(axis=0) for image, away in zip(pictures.images, outside, strict=True)])
    centres = np.array([mean[pictures.scenes == scene].mean(axis=0) for scene in range(6)])
    nearest = np.linalg.norm(mean[:, None] - centres, axis=2).argmin(axis=1)

    assert (nearest == pictures.scenes).mean() > 0.9


def test_the_border_tells_a_confounded_label_and_no_ordinary_one() -> None:
    """A linear classifier that sees nothing but the border's colours: the confound is real, and only where planned."""
    accuracies = {}
    for noise in ("confounded", "ordinary"):
        pictures = generate.draw(600, seed=8, image_size=16, noise=noise, noise_rate=0.5, sizes=(0.25, 0.5))
        wrong = pictures.given_labels != pictures.clean
        border = np.concatenate([pictures.images[:, 0], pictures.images[:, -1]], axis=1) / 255
        features = np.concatenate([border.mean(axis=1), border.std(axis=1), np.ones((600, 1))], axis=1)
        colours = features[:, :3]
        products = [colours**2, colours[:, :1] * colours[:, 1:3], colours[:, 1:2] * colours[:, 2:3]]
        features = np.concatenate([features, *products], axis=1)
        weights = np.linalg.lstsq(features[:400], np.eye(6)[pictures.given_labels[:400]], rcond=None)[0]
        predicted = (features[400:] @ weights).argmax(axis=1)
        accuracies[noise] = [(predicted == labels[400:]).mean() for labels in (pictures.given_labels, pictures.clean)]
        assert wrong.mean() == pytest.approx(0.5 * 5 / 6, abs=0.06)

    assert accuracies["confounded"][0] > 0.45
    assert accuracies["confounded"][1] < 0.27
    assert max(accuracies["ordinary"]) < 0.27


def test_confounded_noise_names_the_scene_and_ordinary_noise_is_as_large() -> None:
    confounded = generate.draw(400, seed=5, image_size=16, noise="confounded", noise_rate=0.4)
    ordinary = generate.draw(400, seed=5, image_size=16, noise="ordinary", noise_rate=0.4)
    wrong = confounded.given_labels != confounded.clean

    assert (confounded.given_labels[wrong] == confounded.scenes[wrong]).all()
    assert wrong.mean() == pytest.approx(0.4 * 5 / 6, abs=0.06)
    assert (ordinary.given_labels != ordinary.clean).sum() == wrong.sum()
    assert (confounded.clean == ordinary.clean).all()


def test_own_scene_is_a_probability_and_swapped_scenes_are_never_the_own_ones() -> None:
    tied, loose = (generate.draw(400, seed=6, image_size=16, **how) for how in ({"own_scene": 0.5}, {"swapped": True}))

    assert (tied.scenes == tied.clean).mean() == pytest.approx(0.5 + 0.5 / 6, abs=0.06)
    assert (loose.scenes != loose.clean).all()


def test_arguments_out_of_range_are_refused_by_name() -> None:
    for broken, message in (
        ({"image_size": 15}, "too small"),
        ({"sizes": (0.6, 0.4)}, "the smaller first"),
        ({"backgrounds": GreyBackgrounds(0.0, 255.0)}, "as many scenes"),
        ({"noise": "symmetric"}, "no such noise"),
        ({"noise_rate": 40.0}, "noise_rate is a share"),
        ({"noise_rate": float("nan")}, "noise_rate is a share"),
        ({"own_scene": -0.1}, "own_scene is a share"),
        ({"seed": -1}, "seed"),
        ({"count": -1}, "number of images"),
    ):
        with pytest.raises(errors.UnusableData, match=message):
            generate.draw(**({"count": 6, "seed": 1} | broken))


def test_the_archive_is_what_an_upload_wants_and_the_truth_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "scenes.zip"
    generate.write_archive(path, train=30, test=12, seed=7, noise_rate=0.5)

    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        train, test, truth = (
            list(csv.DictReader(io.StringIO(archive.read(f"{table}.csv").decode())))
            for table in ("train", "test", "truth")
        )
        picture = np.asarray(Image.open(io.BytesIO(archive.read(test[0]["file"]))))
        masks = {
            row["file"]: np.asarray(Image.open(io.BytesIO(archive.read(row["file"].replace("images/", "masks/")))))
            for row in truth
        }
    assert [len(train), len(test), len(truth)] == [30, 12, 42]
    assert {row["file"] for row in train + test} == {row["file"] for row in truth} <= names
    assert {row["clean"] for row in train} == set(generate.CLASSES)
    assert any(row["label"] != row["clean"] for row in train)
    assert all(row["label"] == row["clean"] for row in test)
    clean = {row["file"]: row["clean"] for row in train + test}
    assert all(clean[row["file"]] == row["clean"] and row["scene"] in generate.SCENES for row in truth)
    assert picture.shape == (32, 32, 3)
    for row in truth:
        x0, y0, x1, y1 = (int(row[edge]) for edge in ("x0", "y0", "x1", "y1"))
        inside = masks[row["file"]][y0:y1, x0:x1]
        assert set(np.unique(masks[row["file"]])) == {0, 255}
        assert inside.sum() == masks[row["file"]].sum()
        assert inside.any(axis=0).all()
        assert inside.any(axis=1).all()


def test_the_command_writes_the_same_zip_as_the_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--train 12 --test 6 --seed 3 --size 48 --sizes 0.3 0.6 --noise ordinary --rate 0.4 --swapped"
    assert command.main(["scenes", str(tmp_path / "one.zip"), *options.split()]) == 0
    first, _ = generate.write_archive(
        tmp_path / "two.zip", train=12, test=6, seed=3, image_size=48, sizes=(0.3, 0.6), noise="ordinary",
        noise_rate=0.4, swapped_test=True,
    )  # fmt: skip

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert f"{(first.given_labels != first.clean).mean():.1%} of the labels wrong" in capsys.readouterr().out
    assert command.main(["scenes", str(tmp_path / "three.zip"), "--size", "8"]) == 1
    assert "too small" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--rate 40", "--own-scene 40", "--held-out 1.5", "--held-out nan"])
def test_shares_outside_0_and_1_are_refused(options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["scenes", str(tmp_path / "one.zip"), "--train", "6", "--test", "6", *options.split()]) == 1
    assert "is a share between 0 and 1" in capsys.readouterr().err
    assert not (tmp_path / "one.zip").exists()


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        generate.write_archive(tmp_path / name, train=6, test=6, seed=1)

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_the_middle_of_a_mask_is_that_of_its_pixels_and_an_empty_one_has_none() -> None:
    masks = np.zeros((3, 8, 8), np.bool_)
    masks[0, 2:5, 1] = True  # rows 2 to 4 of column 1
    masks[1] = True
    assert generate.mask_centres(masks)[:2].tolist() == [[1.0, 3.0], [3.5, 3.5]]
    assert np.isnan(generate.mask_centres(masks)[2]).all()
