"""Shards as Hugging Face writes them become images with their original bytes and labels; their splits by name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ml.formats import shards
from ml.formats.archive import read_archive, reader
from ml.formats.entries import Entry
from ml.formats.layout import resolve_labels
from ml.formats.table_columns import ColumnNames
from tests import pictures
from tests.ml.shards_script import CLASSES

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-readers" / "bin" / "python"
needs_readers = pytest.mark.skipif(
    not PYTHON.exists(), reason="`make test` builds .venv-readers, the environment of other packages"
)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001-a1b2c3.parquet", "test"),
        ("plain_text/validation-00000-of-00001.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("0000.parquet", "train"),
        ("retrained.parquet", "train"),
        ("test/latest.parquet", "test"),
    ],
)
def test_the_name_of_a_shard_says_its_split(path: str, split: str) -> None:
    assert shards.split_of(path) == split


def test_shards_beside_images_are_other_files() -> None:
    shard, image = (Entry(path, 0, 1, False, 1, None) for path in ("a/train.parquet", "b/x.PNG"))

    assert shards.find_shards([shard]) == [shard]
    assert shards.find_shards([shard, image]) == []
    assert shards.find_shards([]) == []


def run(*arguments: object) -> str:
    """The last line that the script prints."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [str(PYTHON), str(Path(__file__).with_name("shards_script.py")), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    return (done.stdout.splitlines() or [""])[-1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and their shards."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(18):
        for split in ("train", "test"):
            kind = ("JPEG", "PNG", "WEBP")[number % 3]
            name = f"{split}-{CLASSES[number % len(CLASSES)]}-{number}.{kind.lower()}"
            (folder / name).write_bytes(pictures.encoded(number + 100 * (split == "test"), kind=kind))
    run("write", folder)
    return folder


def packed(folder: Path, target: Path, **changed: bytes) -> Path:
    files = {f"data/{file.name}": file.read_bytes() for file in folder.glob("*.parquet")}
    target.write_bytes(pictures.zipped({**files, **changed}, deflated=True))
    return target


@needs_readers
def test_shards_become_images_with_their_bytes_and_the_names_of_their_classes(written: Path, tmp_path: Path) -> None:
    archive, target = packed(written, tmp_path / "upload"), tmp_path / "archive"

    assert run("unpack", archive, target) == ""

    layout = resolve_labels(read_archive(target), ColumnNames(clean="expert"))
    assert [line.code for line in layout.report] == []
    assert layout.classes == tuple(sorted(CLASSES))
    with reader(target) as read:
        unpacked = {
            read(image): (image.split, layout.classes[image.given or 0], image.path.rpartition(".")[2])
            for image in layout.images
        }
    images = [file for file in written.iterdir() if file.suffix != ".parquet"]
    names = {file: file.stem.rsplit("-", 1)[0].split("-", 1) for file in images}
    endings = {".jpeg": "jpg", ".png": "png", ".webp": "webp"}
    assert unpacked == {file.read_bytes(): (*names[file], endings[file.suffix]) for file in images}
    assert all(image.clean is not None for image in layout.images)
    assert [file.name for file in tmp_path.iterdir() if file.name not in ("upload", "archive")] == []


@needs_readers
def test_a_shard_that_cannot_be_used_is_refused(written: Path, tmp_path: Path) -> None:
    whole = next(written.glob("train*.parquet")).read_bytes()
    for number, data in enumerate((b"", whole[:-1], whole[:4] + bytes(range(256)) * 16 + whole[-4:])):
        archive = tmp_path / f"upload{number}"
        archive.write_bytes(pictures.zipped({"train.parquet": data}))
        assert run("unpack", archive, tmp_path / f"archive{number}") == "bad_archive"
    many = {f"train-{n}.parquet": whole for n in range(300)}  # more than the script allows
    (tmp_path / "many").write_bytes(pictures.zipped(many, deflated=True))
    assert run("unpack", tmp_path / "many", tmp_path / "archive") == "archive_too_large"
