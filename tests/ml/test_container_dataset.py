"""Plain folders and zips on the command line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml import errors
from ml.data.container_dataset import load_container
from ml.data.stored_rows import in_memory
from ml.formats.table_columns import ColumnNames


def picture(path: Path, shade: int, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), shade, np.uint8)).save(path)


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for split, count in (("train", 3), ("test", 2)):
        for name, shade in (("cat", 10), ("dog", 200)):
            for number in range(count):
                picture(root / split / name / f"{number}.png", shade + number, side=8 + number)
    (root / "train" / "notes.txt").write_text("not a picture")
    return root


def test_class_folders_with_splits(class_folders: Path) -> None:
    loaded = load_container(class_folders, image_size=8)

    assert loaded.images.classes == ("cat", "dog")
    assert loaded.images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert loaded.images.images.shape == (6, 8, 8, 3)
    assert in_memory(loaded.images.images)[:, 0, 0, 0].tolist() == [10, 11, 12, 200, 201, 202]
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == [0, 0, 1, 1]
    assert loaded.truth.train_clean is None


def test_a_zip_is_the_folder_it_was_made_from(class_folders: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in class_folders.rglob("*"):
            archive.write(path, path.relative_to(class_folders))
    one, two = (load_container(path, image_size=8) for path in (class_folders, tmp_path / "set.zip"))

    assert in_memory(one.images.images).equal(in_memory(two.images.images))
    assert one.images.labels.equal(two.images.labels)


def test_tables_with_a_label_column_and_the_truth(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png", 40 * number)
    (tmp_path / "train.csv").write_text(
        "\ufefffile,clean,human\nimages/0.png,a,a\nimages/1.png,b,a\nimages/2.png,b,b\nimages/gone.png,b,b\n"
    )
    (tmp_path / "test.csv").write_text("file,clean\nimages/3.png,b\n")
    loaded = load_container(tmp_path, image_size=8, columns=[ColumnNames(label="human", clean="clean")])

    assert loaded.images.labels.tolist() == [0, 0, 1]
    assert loaded.truth.train_clean is not None
    assert loaded.truth.train_clean.tolist() == [0, 1, 1]
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == [1]
    assert [(line.path, line.code) for line in loaded.report] == [("images/gone.png", "unknown_file")]


def test_classes_are_all_that_occur_and_a_row_without_a_label_is_left_out(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / f"{number:02}.png", 20 * number)
    rows = [f"{number:02}.png,{'bd'[number % 2]},{'cd'[number % 2]}\n" for number in range(10)]
    (tmp_path / "train.csv").write_text("file,label,clean\n" + "".join(rows) + "10.png,,d\n")
    (tmp_path / "test.csv").write_text("file,label\n11.png,a\n")
    loaded = load_container(tmp_path, image_size=8, columns=[ColumnNames(clean="clean")])

    assert loaded.images.classes == ("a", "b", "c", "d")
    assert loaded.images.labels.tolist() == [1, 3] * 5
    assert loaded.truth.train_clean is not None
    assert loaded.truth.train_clean.tolist() == [2, 3] * 5
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == [0]
    assert [(line.path, line.code) for line in loaded.report] == [("10.png", "unlabelled_row")]


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"readme.txt": "x"}, "no_images"),
        ({"labels.csv": "file,kind,size\nx.png,a,1\n", "x.png": ""}, "ambiguous_label_column"),
        ({"labels.csv": "file,label\nx.png,a\n", "x.png": ""}, "too_few_classes"),
        ({"labels.csv": "file,label\nx.png,a\ny.png,b\n"}, "no_images"),
        ({"a/x.png": "", "b/x.png": ""}, "too_many_bad_images"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, files: dict[str, str], code: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(errors.UnusableData) as raised:
        load_container(tmp_path, image_size=8)

    assert raised.value.code == code
