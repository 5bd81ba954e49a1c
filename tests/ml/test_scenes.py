"""Laws of the scenes: exact masks, known errors, confounding where it is asked for, and everything from a seed."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import scenes


def test_the_same_seed_draws_the_same_pictures_and_another_seed_others() -> None:
    one, again, other = (scenes.draw(12, seed=seed, noise="confounded") for seed in (3, 3, 4))

    assert (one.images == again.images).all()
    assert (one.given == again.given).all()
    assert (one.images != other.images).any()


@pytest.mark.parametrize("image_size", [16, 32, 80])
def test_masks_cover_the_plate_off_centre_at_any_size(image_size: int) -> None:
    pictures = scenes.draw(24, seed=1, image_size=image_size)
    side = np.sqrt(pictures.masks.sum(axis=(1, 2))) / image_size
    grid = (np.arange(image_size) + 0.5) / image_size - 0.5
    x = (pictures.masks.sum(axis=1) * grid).sum(axis=1) / pictures.masks.sum(axis=(1, 2))
    y = (pictures.masks.sum(axis=2) * grid).sum(axis=1) / pictures.masks.sum(axis=(1, 2))

    assert ((side > 12 / 32) & (side < 19 / 32)).all()
    assert ((np.hypot(x, y) > 3 / 32) & (np.hypot(x, y) < 8 / 32)).all()


def test_a_plate_hides_its_scene_and_the_scene_is_all_there_is_around_it() -> None:
    """Outside the mask, pictures of one scene look alike whatever their class; that is the confounder."""
    pictures = scenes.draw(240, seed=2)
    outside = ~pictures.masks
    mean = np.array([image[away].mean(axis=0) for image, away in zip(pictures.images, outside, strict=True)])
    centres = np.array([mean[pictures.scenes == scene].mean(axis=0) for scene in range(6)])
    nearest = np.linalg.norm(mean[:, None] - centres, axis=2).argmin(axis=1)

    assert (nearest == pictures.scenes).mean() > 0.9


def test_confounded_noise_names_the_scene_and_ordinary_noise_is_as_large() -> None:
    confounded = scenes.draw(600, seed=5, noise="confounded", noise_rate=0.4)
    ordinary = scenes.draw(600, seed=5, noise="ordinary", noise_rate=0.4)
    wrong = confounded.given != confounded.clean

    assert (confounded.given[wrong] == confounded.scenes[wrong]).all()
    assert wrong.mean() == pytest.approx(0.4 * 5 / 6, abs=0.06)
    assert (ordinary.given != ordinary.clean).sum() == wrong.sum()
    assert (confounded.clean == ordinary.clean).all()


def test_own_scene_is_a_probability_and_swapped_scenes_are_never_the_own_ones() -> None:
    tied, loose = scenes.draw(600, seed=6, own_scene=0.5), scenes.draw(600, seed=6, swapped=True)

    assert (tied.scenes == tied.clean).mean() == pytest.approx(0.5 + 0.5 / 6, abs=0.06)
    assert (loose.scenes != loose.clean).all()


def test_the_archive_is_what_an_upload_wants_and_masks_are_outside_of_what_is_learned(tmp_path: Path) -> None:
    path = tmp_path / "scenes.zip"
    scenes.write_archive(path, train=30, test=12, seed=7, noise_rate=0.5)

    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        train, test = (
            list(csv.DictReader(io.StringIO(archive.read(f"{split}.csv").decode()))) for split in ("train", "test")
        )
        picture = np.asarray(Image.open(io.BytesIO(archive.read(test[0]["file"]))))
        mask = np.asarray(Image.open(io.BytesIO(archive.read(test[0]["file"].replace("images/", "masks/")))))
    assert [len(train), len(test)] == [30, 12]
    assert {row["file"] for row in train + test} <= names
    assert {row["clean"] for row in train} == set(scenes.CLASSES)
    assert any(row["label"] != row["clean"] for row in train)
    assert all(row["label"] == row["clean"] for row in test)
    assert not {row["file"] for row in train + test} & {name for name in names if name.startswith("masks/")}
    assert picture.shape == (32, 32, 3)
    assert mask.shape == (32, 32)
    assert set(np.unique(mask)) == {0, 255}


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        scenes.write_archive(tmp_path / name, train=6, test=6, seed=1)

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
