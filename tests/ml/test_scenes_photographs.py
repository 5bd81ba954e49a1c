"""Photographs as foregrounds and backgrounds: how they are cut, that tests show new ones, that masks are exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ml import __main__ as command
from ml import errors
from ml.scenes import generate, photographs

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A red disc cut by its mask, a green disc cut by its transparency; both on magenta, which must not show."""
    for name, colour in (("green", GREEN), ("red", RED)):
        (tmp_path / "objects" / name).mkdir(parents=True)
        for number in range(4):
            disc = Image.new("L", (40, 30))
            ImageDraw.Draw(disc).ellipse((5, 5, 25, 25), fill=255)
            picture = Image.new("RGB", (40, 30), (255, 0, 255))
            picture.paste(colour, mask=disc)
            file = tmp_path / "objects" / name / f"{number}.png"
            if name == "green":
                picture.putalpha(disc)
            else:
                disc.save(file.with_name(f"{number}.mask.png"))
            picture.save(file)
    return tmp_path / "objects"


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Two families: dark and light blue, each picture a little different."""
    for name, value in (("dark", 40), ("light", 200)):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (60, 44), (value, value, 200 + number)).save(tmp_path / "scenes" / name / f"{number}.jpg")
    return tmp_path / "scenes"


@pytest.mark.parametrize("image_size", [32, 96])
def test_photographs_stand_whole_and_alone_before_photographs(objects: Path, places: Path, image_size: int) -> None:
    cut_outs, scenes = photographs.PhotoForegrounds.read(objects), photographs.PhotoBackgrounds.read(places)
    pictures = generate.draw(
        20, seed=1, image_size=image_size, sizes=(0.3, 0.6), foregrounds=cut_outs, backgrounds=scenes
    )

    assert cut_outs.classes == ("green", "red")
    assert scenes.names == ("dark", "light")
    for image, mask, kind, scene in zip(
        pictures.images.astype(int), pictures.masks, pictures.clean, pictures.scenes, strict=True
    ):
        x0, y0, x1, y1 = generate.mask_box(mask)
        width, height = x1 - x0, y1 - y0
        assert 0.25 * image_size < max(width, height) < 0.65 * image_size
        assert mask.sum() == pytest.approx(np.pi / 4 * width * height, rel=0.12)  # a disc, as it was cut
        assert abs(image[mask].mean(axis=0) - (GREEN, RED)[kind]).max() < 25
        assert abs(image[~mask][:, 0].mean() - (40, 200)[scene]) < 25
        assert not ((image[:, :, 0] > 200) & (image[:, :, 1] < 60) & (image[:, :, 2] > 200)).any()


def test_what_is_before_two_scenes_is_one_object_with_an_exact_mask(objects: Path, places: Path) -> None:
    cut_outs, scenes = photographs.PhotoForegrounds.read(objects), photographs.PhotoBackgrounds.read(places)
    images = generate.before_every_scene(1, seed=2, image_size=64, foregrounds=cut_outs, backgrounds=scenes)
    dark, light = images.images.astype(float)
    covered = 1 - (light - dark)[:, :, 0] / 160

    assert (covered[images.masks[0]] > 0.45).all()
    assert (covered[~images.masks[0]] < 0.55).all()


def test_boxes_cut_rectangles_and_a_picture_without_any_is_used_whole(objects: Path) -> None:
    for name in ("blue", "whole"):
        (objects / name).mkdir()
        picture = Image.new("RGB", (50, 40), (255, 255, 255))
        picture.paste(BLUE, (10, 20, 40, 30))
        picture.save(objects / name / "a.png")
    (objects / "boxes.csv").write_text("file,x0,y0,x1,y1\nblue/a.png,10,20,40,30\nblue/a.png,0,0,9.6,9.4\n")
    foregrounds = photographs.PhotoForegrounds.read(objects)
    cut_outs = dict(zip(foregrounds.classes, foregrounds.cut_outs, strict=True))

    assert [cut_out.size for cut_out in cut_outs["blue"]] == [(30, 10), (10, 9)]
    assert cut_outs["blue"][0].getextrema() == tuple((value, value) for value in (*BLUE, 255))
    assert [cut_out.size for cut_out in cut_outs["whole"]] == [(50, 40)]
    assert [cut_out.size for cut_out in cut_outs["red"]] == [(21, 21)] * 4


@pytest.mark.parametrize("line", ["red/0.png,1,2,3", "red/0.png,a,2,3,4", "red/0.png,0,0,inf,9", "red/0.png,nan,0,9,9"])
def test_invalid_boxes_are_named_by_their_line(objects: Path, line: str) -> None:
    (objects / "boxes.csv").write_text(f"file,x0,y0,x1,y1\nred/1.png,0,0,9,9\n{line}\n")
    with pytest.raises(errors.UnusableData, match=r"boxes\.csv, line 3"):
        photographs.PhotoForegrounds.read(objects)
    (objects / "boxes.csv").write_text("name,x0,y0,x1,y1\nred/1.png,0,0,9,9\n")
    with pytest.raises(errors.UnusableData, match=r"boxes\.csv, line 2"):
        photographs.PhotoForegrounds.read(objects)


def test_a_box_outside_its_picture_cuts_nothing(objects: Path) -> None:
    (objects / "whole").mkdir()
    Image.new("RGB", (50, 40)).save(objects / "whole" / "a.png")
    lines = ["file,x0,y0,x1,y1", "whole/a.png,0,0,20,20", "whole/a.png,60,0,80,20", "whole/a.png,30,30,10,10"]
    (objects / "boxes.csv").write_text("\n".join(lines))
    foregrounds = photographs.PhotoForegrounds.read(objects)

    assert [cut_out.size for cut_out in dict(zip(foregrounds.classes, foregrounds.cut_outs, strict=True))["whole"]] == [
        (20, 20)
    ]


def test_a_test_shows_photographs_that_no_training_has_seen(objects: Path, places: Path) -> None:
    for source in (photographs.PhotoForegrounds.read(objects), photographs.PhotoBackgrounds.read(places)):
        families = "cut_outs" if isinstance(source, photographs.PhotoForegrounds) else "images"
        first, second = (getattr(part, families) for part in source.split(0.25))

        assert [len(family) for family in first] == [3, 3]
        assert [len(family) for family in second] == [1, 1]
        assert all(set(map(id, one)).isdisjoint(map(id, two)) for one, two in zip(first, second, strict=True))
        assert source.split(0.0) == (source, source)


def test_folders_that_cannot_be_used_are_refused(objects: Path, places: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UnusableData, match="is no folder"):
        photographs.PhotoForegrounds.read(tmp_path / "nowhere")
    with pytest.raises(errors.UnusableData, match="two are the least"):
        photographs.PhotoBackgrounds.read(places / "dark")
    (places / "empty").mkdir()
    with pytest.raises(errors.UnusableData, match="no pictures in"):
        photographs.PhotoBackgrounds.read(places)
    (objects / "red" / "0.png").write_bytes(b"nothing")
    with pytest.raises(errors.UnusableData, match=r"0\.png"):
        photographs.PhotoForegrounds.read(objects)


def test_the_command_takes_both_folders_and_repeats_itself(objects: Path, places: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        options = ["--objects", str(objects), "--scenes", str(places), "--size", "48", "--train", "8", "--test", "4"]
        assert command.main(["scenes", str(tmp_path / name), *options]) == 0

    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
