"""A ready data set as the API shows it, read with the standard library alone."""

from __future__ import annotations

import io
import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.datasets import contents
from app.errors import ImageNotFound
from app.storage import Storage
from ml.data import ingest
from ml.formats import dataset_index, image_query
from ml.formats.archive import decompress, read_archive
from ml.formats.image_query import ImageQuery
from ml.formats.layout import resolve_labels
from tests import pictures

FILES = {
    **pictures.class_folders(("bird", "cat", "dog"), per_class=5, splits=("train", "test"), side=20),
    "train/cat/broken.jpg": b"no",
    "train/cat/copy.jpg": pictures.encoded(1, 20, 20, hue=0),
    "README.md": b"#",
}


@pytest.fixture(scope="module", params=["zip", "tar.gz"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Through all of the way in: archive, layout, ingest."""
    home = tmp_path_factory.mktemp("dataset")
    upload = home / "upload"
    packed = (
        pictures.zipped(FILES, deflated=True) if request.param == "zip" else pictures.tarred(FILES, compression="gz")
    )
    upload.write_bytes(packed)
    layout = resolve_labels(read_archive(upload))
    if not decompress(upload, home / "archive"):
        os.link(upload, home / "archive")
    ingest.ingest(home / "archive", layout.images, layout.classes, home, report=layout.report, facts=layout.facts)
    return home


def test_classes_are_counted_per_split(folder: Path) -> None:
    assert dataset_index.read_classes(folder) == ["bird", "cat", "dog"]
    assert dataset_index.count_classes(folder) == [(0, "bird", 5, 5), (1, "cat", 6, 5), (2, "dog", 5, 5)]
    assert dataset_index.read_facts(folder)["train_images"] == 16


def test_pages_follow_each_other_without_gap_or_repeat(folder: Path) -> None:
    seen: list[int] = []
    after: tuple[int, ...] = (-1,)
    while page := image_query.find(folder, ImageQuery(), after=after, limit=7):
        seen, after = seen + [match.image.number for match in page], page[-1].position
    assert seen == list(range(31))


def test_filters_combine(folder: Path) -> None:
    rows = image_query.find(folder, ImageQuery(split="test", label="dog", text="DOG/", order="path"))
    assert [row.image.path for row in rows] == [f"test/dog/{number}.jpg" for number in range(5)]
    assert [row.number for row in dataset_index.read_images(folder, split="train", numbers=[3, 1, 500])] == [1, 3]
    assert dataset_index.read_images(folder, numbers=[]) == []


def test_an_image_is_found_by_index_and_by_path_with_its_bytes(folder: Path) -> None:
    for path, data in FILES.items():
        if path.endswith("README.md") or data == b"no":
            continue
        row = contents.find_image(folder, path)
        assert contents.find_image(folder, row.number) == row
        assert dataset_index.read_original(folder, row) == data
        assert (row.width, row.height, contents.CONTENT_TYPES[row.format]) == (20, 20, "image/jpeg")


@pytest.mark.parametrize("reference", [-1, 31, 2**70, "nope", "../archive", "README.md", "\ud800", ""])
def test_an_unknown_image_is_not_found(folder: Path, reference: int | str) -> None:
    with pytest.raises(ImageNotFound):
        contents.find_image(folder, reference)


def test_a_thumbnail_is_a_png_of_the_packed_pixels(folder: Path, tmp_path: Path) -> None:
    row = contents.find_image(folder, "test/dog/3.jpg")
    files, dataset_id = Storage(tmp_path), uuid.uuid4()
    files.create()
    files.dataset(dataset_id).symlink_to(folder)
    with Image.open(io.BytesIO(contents.thumbnail(files, dataset_id, row))) as picture:
        assert picture.format == "PNG"
        expected = np.load(next(folder.glob("pixels-*.npy")))[row.number]
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_the_report_names_every_file(folder: Path) -> None:
    assert {(row.path, row.code, row.level) for row in dataset_index.read_report(folder)} == {
        ("train/cat/broken.jpg", "unsupported_format", "excluded"),
        ("README.md", "ignored_file", "ignored"),
        ("train/cat/copy.jpg", "duplicate_image", "warning"),
        ("train/cat/copy.jpg", "same_image_two_labels", "warning"),
    }
    assert dataset_index.summarize_report(folder)["excluded"] == {"unsupported_format": 1}
    warnings = dataset_index.read_report(folder, level="warning")
    assert dataset_index.read_report(folder, level="warning", after=warnings[0].number) == warnings[1:]
    assert dataset_index.read_report(folder, code="ignored_file", limit=1)[0].path == "README.md"
