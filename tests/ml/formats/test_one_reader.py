"""The service and the command line read the same files the same way: an upload through ingest, the same archive on the
command line, and the folder it was packed from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.datasets.archive_check import check_archive
from app.errors import ArchiveRejected
from app.settings import Settings
from ml.data import dataset, ingest
from ml.data.container_dataset import load_container
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import in_memory
from ml.errors import UnusableData
from ml.formats.archive import decompress
from ml.formats.table_columns import ColumnNames
from tests import pictures
from tests.pictures import class_folders, table, with_table

SIDE = 8
Outcome = tuple[object, ...] | str


def by_service(archive: Path, folder: Path, columns: Mapping[str, str]) -> Outcome:
    """Check, ingest and load an archive as the API and its worker do; the code of a refusal."""
    try:
        layout = check_archive(archive, {f"{name}_column": column for name, column in columns.items()}, Settings())
        assert layout is not None
        folder.mkdir()
        if not decompress(archive, folder / "archive"):
            (folder / "archive").write_bytes(archive.read_bytes())
        ingest.ingest(folder / "archive", layout.images, layout.classes, folder, report=layout.report, image_size=SIDE)
    except (ArchiveRejected, UnusableData) as error:
        return error.code
    return described(*dataset.load(folder, image_size=SIDE))


def by_command(path: Path, columns: Mapping[str, str]) -> Outcome:
    """Load a folder or an archive as `python -m ml train` does; the code of a refusal."""
    try:
        loaded = load_container(path, image_size=SIDE, columns=[ColumnNames(**dict[str, Any](columns))])
    except UnusableData as error:
        return error.code
    return described(loaded.images, loaded.truth)


def described(images: LabeledImages, truth: Truth) -> Outcome:
    """Classes, labels, clean labels, test labels and all pixels."""
    test = None if truth.test_images is None else in_memory(truth.test_images)
    tensors = (images.labels, truth.train_clean, truth.test_labels, in_memory(images.images), test)
    return images.classes, *(None if tensor is None else tensor.tolist() for tensor in tensors)


def unpack(files: Mapping[str, bytes], folder: Path) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{path}": data for path, data in files.items()}


def with_splits() -> dict[str, bytes]:
    """train.csv with given and clean labels, test.csv with clean ones."""
    files = {f"{split}/{number}.jpg": pictures.encoded(number) for split in ("train", "test") for number in range(4)}
    rows = [f"train/{number}.jpg,{'ab'[number % 2]},{'ab'[number // 2]}" for number in range(4)]
    tests = [f"test/{number}.jpg,{'ab'[number % 2]}" for number in range(4)]
    return {**files, "train.csv": table("file,clean,noisy", rows), "test.csv": table("file,clean", tests)}


NUMBERED = {
    **{f"images/{number}.jpg": pictures.encoded(number) for number in range(4)},
    "labels.csv": table("Image;Target", [f"images/{number}.jpg;{number % 2}" for number in range(4)]),
    "classes.txt": b"zebra\nape\n",
}

INDEXED = {  # as pandas writes a table with its index
    **{f"images/{number}.jpg": pictures.encoded(number) for number in range(4)},
    "labels.csv": table(",file,label", [f"{number},images/{number}.jpg,{'ab'[number % 2]}" for number in range(4)]),
}

LAYOUTS: dict[str, tuple[dict[str, bytes], dict[str, str]]] = {
    "class folders": (class_folders(), {}),
    "class folders in a folder": (below("pets", class_folders()), {}),
    "train and test": (class_folders(splits=("train", "test")), {}),
    "train and val": (class_folders(splits=("train", "val")), {}),
    "train, val and test": (class_folders(splits=("train", "val", "test")), {}),
    "Train and Validation in a folder": (below("pets", class_folders(splits=("Train", "Validation"))), {}),
    "junk and other files": ({**class_folders(), "__MACOSX/cat/._1.jpg": b"x", "README.md": b"#"}, {}),
    "a damaged image": ({**class_folders(per_class=10), "cat/5.jpg": b"x"}, {}),
    "too many damaged images": ({**class_folders(), "cat/1.jpg": b"x"}, {}),
    "labels.csv": (with_table(), {}),
    "metadata.csv in a folder": (below("set", with_table(name="metadata.csv")), {}),
    "a table of another name": (with_table(name="birds.csv"), {}),
    "splits in tables": (with_splits(), {"label": "noisy", "clean": "clean"}),
    "splits in tables, column not named": (with_splits(), {}),
    "metadata in split folders": (
        {**below("train", with_table(name="metadata.csv", folder=".x")), **class_folders(splits=("train",))}, {},
    ),
    "classes by number": (NUMBERED, {}),
    "a first column without a name": (INDEXED, {}),
    "no images": ({"README.md": b"#"}, {}),
    "images without labels": ({"1.jpg": pictures.encoded(1), "2.jpg": pictures.encoded(2)}, {}),
    "one class": (class_folders(("cat",)), {}),
    "names that differ in case": ({**class_folders(), "CAT/1.jpg": pictures.encoded(9), "cat/a.jpg": b"", "cat/A.jpg": b""}, {}),  # noqa: E501
    "a column without a table": (class_folders(), {"label": "label"}),
}  # fmt: skip


@pytest.mark.parametrize("compression", ["zip", "", "gz", "zst"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_service_and_command_line_read_the_same(name: str, compression: str, tmp_path: Path) -> None:
    files, columns = LAYOUTS[name]
    archive = tmp_path / "upload"
    archive.write_bytes(
        pictures.zipped(files) if compression == "zip" else pictures.tarred(files, compression=compression)
    )
    outcome = by_service(archive, tmp_path / "dataset", columns)

    assert by_command(archive, columns) == outcome
    assert by_command(unpack(files, tmp_path / "folder"), columns) == outcome


def test_the_index_that_pandas_writes_is_no_obstacle(tmp_path: Path) -> None:
    outcome = by_command(unpack(INDEXED, tmp_path / "set"), {})

    assert outcome[0] == ("a", "b")


def test_val_beside_train_is_the_test_set_and_no_class(tmp_path: Path) -> None:
    files = class_folders(splits=("train", "val"))
    loaded = load_container(unpack(files, tmp_path / "set"), image_size=SIDE)

    assert loaded.images.classes == ("cat", "dog")
    assert loaded.truth.test_labels is not None
    assert loaded.truth.test_labels.tolist() == [0] * 4 + [1] * 4


names = st.sampled_from(["cat", "dog", "train", "val", "Test", "images", "set", ".x", "a b"])
paths = st.lists(names, max_size=3).map("/".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    folders=st.lists(paths, min_size=1, max_size=5, unique_by=str.lower),
    rows=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["cat", "dog", "", "1"])), max_size=6),
    header=st.sampled_from(["file,label", "Path;Class", "image\tx", "file,a,b", "name,label"]),
    with_rows=st.booleans(),
)
def test_any_files_are_read_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    folders: list[str],
    rows: list[tuple[int, str]],
    header: str,
    with_rows: bool,
) -> None:
    tmp_path = tmp_path_factory.mktemp("files")
    files = {f"{folder}/{n}.jpg".lstrip("/"): pictures.encoded(n) for n, folder in enumerate(folders * 2)}
    if with_rows:
        separator = next(sign for sign in ",;\t" if sign in header)
        listed = list(files)
        lines = [separator.join([listed[at % len(listed)], label]) for at, label in rows]
        files["labels.csv"] = table(header, lines)
    (tmp_path / "upload").write_bytes(pictures.zipped(files))
    outcome = by_service(tmp_path / "upload", tmp_path / "dataset", {})

    assert by_command(tmp_path / "upload", {}) == outcome
    assert by_command(unpack(files, tmp_path / "folder"), {}) == outcome


def test_what_the_command_line_alone_refuses_is_that_nothing_is_there(tmp_path: Path) -> None:
    assert by_command(tmp_path / "gone", {}) == "no_data"
