"""Exports: every format has every image with its label, and what this service reads comes back unchanged."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import tracemalloc
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ml.formats import dataset_index, exporters
from ml.formats.archive import read_archive
from ml.formats.entries import UNLIMITED
from ml.formats.errors import DatasetFormatError
from ml.formats.export import Export
from ml.formats.export_archive import ExportFile, ZipWriter
from ml.formats.export_source import read_version
from ml.formats.exporters import Format
from ml.formats.label_versions import Edit
from ml.formats.records import ImageRecord
from ml.formats.table_columns import ColumnNames
from tests import pictures
from tests.ml.formats.exported import READERS, correct, edit, exported, labels_of, odd_files, read_back, ready, unpacked

EACH_FORMAT = pytest.mark.parametrize("format", exporters.FORMATS)
UPLOADS = {
    "class folders": pictures.zipped(pictures.class_folders()),
    "split folders": pictures.zipped(pictures.class_folders(splits=("train", "test"))),
    "folders around": pictures.tarred({f"a/b/{n}": d for n, d in pictures.class_folders(splits=("train",)).items()}),
    "val": pictures.zipped(pictures.class_folders(splits=("train", "val", "test"))),
    "table": pictures.tarred(pictures.with_table(), compression="gz"),
    "odd names": pictures.zipped(odd_files(), deflated=True),
}
EACH_UPLOAD = pytest.mark.parametrize("upload", UPLOADS)


def test_every_format_is_read_back_here() -> None:
    assert tuple(sorted(READERS)) == exporters.FORMATS


@pytest.fixture(scope="module")
def ready_sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A data set of each upload with two versions of its labels, made once."""

    @functools.cache
    def make(upload: str) -> Path:
        folder = tmp_path_factory.mktemp("ready") / "set"
        ready(folder, UPLOADS[upload])
        correct(folder)
        return folder

    return make


@EACH_UPLOAD
@EACH_FORMAT
def test_a_format_has_every_image_with_its_split_and_label(
    format: Format, upload: str, ready_sets: Callable[[str], Path]
) -> None:
    folder = ready_sets(upload)
    archive, corrected = exported(folder, format), exported(folder, format, 2)

    assert read_back(format, archive) == labels_of(folder)
    assert read_back(format, corrected) == labels_of(folder, 2) != labels_of(folder)
    assert len(labels_of(folder, 2)) < len(labels_of(folder))
    assert exported(folder, format) == archive
    for version, written in ((1, archive), (2, corrected)):
        assert Export(folder, read_version(folder, version), format).size() == len(written)


@EACH_UPLOAD
@pytest.mark.parametrize("format", [format for format in exporters.FORMATS if format != "fiftyone"])
def test_an_export_that_is_uploaded_again_has_the_same_labels(
    format: Format, upload: str, ready_sets: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = ready_sets(upload)

    for version in (1, 2):
        facts = ready(tmp_path / str(version), exported(folder, format, version))
        assert labels_of(tmp_path / str(version)) == labels_of(folder, version)
        assert read_archive(tmp_path / str(version) / "archive").entries  # under the limits of the service
        keeps_paths = {format: set(UPLOADS) for format in ("csv", "coco", "labelstudio")}
        keeps_paths |= {"webdataset": set(), "imagefolder": set(UPLOADS) - {"table", "odd names"}}
        keeps_paths["huggingface"] = {"class folders", "split folders", "table"}
        if version == 1 and upload in keeps_paths[format]:
            assert facts["digest"] == dataset_index.read_facts(folder)["digest"]


def test_clean_labels_come_back_under_their_column(tmp_path: Path) -> None:
    files = pictures.with_table()
    rows = [f"images/{n}.jpg,{('cat', 'dog')[n % 2]},{('dog', 'cat')[n % 3 == 0]}" for n in range(6)]
    files["labels.csv"] = pictures.table("file,label,truth", rows)
    facts = ready(tmp_path / "set", pictures.zipped(files), ColumnNames(clean="truth"))

    archive = exported(tmp_path / "set", "csv")

    assert facts["noise_rate"]
    again = ready(tmp_path / "again", archive, ColumnNames(clean="clean_label"))
    assert (again["digest"], again["noise_rate"]) == (facts["digest"], facts["noise_rate"])


def test_class_folders_keep_paths_and_move_only_what_was_relabelled(tmp_path: Path) -> None:
    ready(tmp_path / "set", UPLOADS["split folders"])
    edit(tmp_path / "set", Edit("relabel", 0, "cat", "dog"))  # train/cat/0.jpg, and there is a train/dog/0.jpg

    names = set(unpacked(exported(tmp_path / "set", "imagefolder", 2)))

    before = {image.path for image in dataset_index.read_images(tmp_path / "set")}
    assert (before - names, names - before) == ({"train/cat/0.jpg"}, {"train/dog/0-0.jpg"})


@pytest.mark.parametrize("format", [format for format in exporters.FORMATS if format != "fiftyone"])
def test_no_image_lies_in_a_folder_that_is_a_file_of_the_export(format: Format, tmp_path: Path) -> None:
    tables = ("labels.csv", "README.md", "Metadata.jsonl", "config.xml", "tasks.json", "annotations/train.json")
    files = pictures.class_folders((*tables, "annotations/test.json", "cat"), per_class=2)
    ready(tmp_path / "set", pictures.zipped(files))
    edit(tmp_path / "set", Edit("rename_class", None, "cat", "a/b"))  # no name of a folder: there is a table as well

    archive = exported(tmp_path / "set", format, 2)

    assert read_back(format, archive) == labels_of(tmp_path / "set", 2)
    ready(tmp_path / "again", archive)  # which refuses a file that is a folder as well
    assert labels_of(tmp_path / "again") == labels_of(tmp_path / "set", 2)


def test_an_image_that_moves_to_another_class_makes_no_folder_of_an_image(tmp_path: Path) -> None:
    files = pictures.class_folders(per_class=2)
    files |= {"cat/0.jpg": pictures.encoded(7), "dog/0.jpg/1.png": pictures.encoded(8, kind="PNG", hue=1)}
    del files["dog/0.jpg"]
    ready(tmp_path / "set", pictures.zipped(files))
    (moved,) = (image for image in dataset_index.read_images(tmp_path / "set") if image.path.endswith(".png"))
    edit(tmp_path / "set", Edit("relabel", moved.number, "dog", "cat"))

    archive = exported(tmp_path / "set", "imagefolder", 2)

    assert f"cat/0.jpg-{moved.number}/1.png" in unpacked(archive)
    ready(tmp_path / "again", archive)
    assert labels_of(tmp_path / "again") == labels_of(tmp_path / "set", 2)


def test_the_configuration_for_label_studio_is_xml_whatever_classes_are_called(tmp_path: Path) -> None:
    ready(tmp_path / "set", pictures.zipped(pictures.class_folders(("\ufffe", 'a"<b>&'), per_class=2)))

    files = unpacked(exported(tmp_path / "set", "labelstudio"))

    assert [choice.get("value") for choice in ET.fromstring(files["config.xml"]).iter("Choice")] == ['a"<b>&', "\ufffd"]


@EACH_FORMAT
def test_a_damaged_image_ends_the_stream_before_the_archive_is_complete(format: Format, tmp_path: Path) -> None:
    ready(tmp_path / "set", UPLOADS["split folders"])
    last = dataset_index.read_images(tmp_path / "set")[-1]
    archive = bytearray((tmp_path / "set/archive").read_bytes())
    archive[last.offset + 5] ^= 1
    (tmp_path / "set/archive").write_bytes(archive)

    export = Export(tmp_path / "set", read_version(tmp_path / "set", 1), format)
    sent: list[bytes] = []
    with pytest.raises(DatasetFormatError, match="not the one that was uploaded"):
        sent.extend(export.chunks())

    assert len(b"".join(sent)) < export.size()


def index_of(folder: Path, count: int) -> None:
    """A ready data set of `count` images that all have the same bytes."""
    data = pictures.encoded(1)
    folder.mkdir()
    (folder / "archive").write_bytes(data)
    facts = (8, 8, hashlib.sha256(data).hexdigest(), "JPEG")
    images = (
        ImageRecord(f"train/c{n % 10}/{n:07}.jpg", "train", n % 10, None, 0, len(data), 0, len(data), None, n, *facts)
        for n in range(count)
    )
    dataset_index.write_index(folder, images, [f"c{n}" for n in range(10)], [], {"digest": "sha256:0"})


@EACH_FORMAT
def test_memory_does_not_grow_with_the_images(format: Format, tmp_path: Path) -> None:
    peaks = []
    for count in (4_000, 16_000):
        index_of(tmp_path / str(count), count)
        export = Export(tmp_path / str(count), read_version(tmp_path / str(count), 1), format)
        tracemalloc.start()
        for _ in itertools.chain([export.size()], export.chunks()):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    small, large = peaks
    assert large - small < 12_000 * 300  # names are held by the formats that must tell them apart, bytes by none


def test_a_zip_of_more_than_65535_files_is_one(tmp_path: Path) -> None:
    writer = ZipWriter(lambda: (ExportFile(f"{n}.txt", b"%d" % n) for n in range(70_000)))

    archive = b"".join(writer.chunks(no_image))

    assert len(archive) == writer.size()
    (tmp_path / "a.zip").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "a.zip") as entries:
        assert (len(entries.namelist()), entries.read("69999.txt")) == (70_000, b"69999")
    assert len(read_archive(tmp_path / "a.zip").entries) == 70_000


@pytest.mark.slow
def test_a_zip_of_more_than_4_gib_is_one(tmp_path: Path) -> None:
    half = [bytes(64 << 20)] * 33  # a little more than 2 GiB
    files = [ExportFile("a", lambda: half), ExportFile("b", lambda: half), ExportFile("last.txt", b"the last one")]
    writer = ZipWriter(lambda: iter(files))

    with (tmp_path / "a.zip").open("wb") as file:
        for chunk in writer.chunks(no_image):
            if chunk is half[0]:
                file.seek(len(chunk), io.SEEK_CUR)  # a hole: nothing is written to the disk
            else:
                file.write(chunk)

    assert (tmp_path / "a.zip").stat().st_size == writer.size() > 4 << 30
    with zipfile.ZipFile(tmp_path / "a.zip") as entries:
        assert entries.read("last.txt") == b"the last one"
    assert [entry.path for entry in read_archive(tmp_path / "a.zip", UNLIMITED).entries] == ["a", "b", "last.txt"]


def no_image(image: ImageRecord) -> bytes:
    raise AssertionError(image)


def test_json_of_no_image_is_json(tmp_path: Path) -> None:
    ready(tmp_path / "set", UPLOADS["split folders"])
    images = dataset_index.read_images(tmp_path / "set")
    edit(
        tmp_path / "set", *(Edit("exclude", image.number, pictures.CLASSES[image.given or 0], None) for image in images)
    )

    assert json.loads(unpacked(exported(tmp_path / "set", "labelstudio", 2))["tasks.json"]) == []
