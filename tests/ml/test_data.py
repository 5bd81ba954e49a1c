"""Ingest and the tensors it leaves: Z3, Z5, Z9, IMG3 as far as they need the bytes, and what training relies on."""

from __future__ import annotations

import hashlib
import io
import json
import resource
import sqlite3
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ml.data import dataset, decoding, ingest, pixel_file
from ml.data.dataset import LabeledImages, Selection
from ml.data.decoding import Geometry
from ml.data.stored_rows import in_memory
from ml.errors import UnusableData
from ml.formats import dataset_index
from ml.formats.records import ImageRecord, ReportLine
from tests import pictures

CLASSES = ("cat", "dog")


Make = Callable[..., Path]


def items(packed: bytes, clean: Mapping[str, int] | None = None) -> list[ImageRecord]:
    """Class folders of a zip, under train/ or test/ or neither, as the service would list them."""
    result = []
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for info in archive.infolist():
            *split, name, _ = info.filename.split("/")
            start = info.header_offset + 30 + len(info.filename)
            labels = (CLASSES.index(name), (clean or {}).get(info.filename))
            result.append(
                ImageRecord(info.filename, "test" if split == ["test"] else "train", *labels, start, info.compress_size,
                     info.compress_type == 8, info.file_size, info.CRC)
            )  # fmt: skip
    return result


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A ready data set from files, or what ingest raises."""

    def ready(
        files: Mapping[str, bytes],
        *,
        deflated: bool = False,
        change: Callable[[ImageRecord], ImageRecord] = lambda image: image,
        clean: Mapping[str, int] | None = None,
        **options: Any,
    ) -> Path:
        folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        packed = pictures.zipped(files, deflated=deflated)
        (folder / "archive").write_bytes(packed)
        listed = [change(item) for item in items(packed, clean)]
        ingest.ingest(folder / "archive", listed, CLASSES, folder, **options)
        return folder

    return ready


def report(folder: Path) -> list[tuple[str, str, str]]:
    with dataset_index.open_index(folder) as index:
        return [tuple(row) for row in index.execute("SELECT path, code, level FROM report ORDER BY rowid")]


def refusal(make: Make, *arguments: Any, **options: Any) -> UnusableData:
    with pytest.raises(UnusableData) as caught:
        make(*arguments, **options)
    return caught.value


@pytest.mark.parametrize("deflated", [False, True])
def test_pixels_and_labels_are_those_of_the_files(make: Make, deflated: bool) -> None:
    files = pictures.class_folders(splits=("train", "test"), side=24)
    labeled, truth = dataset.load(make(files, deflated=deflated), image_size=24)
    assert labeled.classes == CLASSES
    paths = sorted(path for path in files if path.startswith("train"))
    for row, path in enumerate(paths):
        np.testing.assert_array_equal(in_memory(labeled.images)[row], decoding.decode(files[path]))
        assert labeled.labels[row] == CLASSES.index(path.split("/")[1])
    assert labeled.images.dtype == torch.uint8
    assert labeled.labels.dtype == torch.int64
    assert truth.train_clean is None
    assert truth.test_images is not None
    assert truth.test_labels is not None
    np.testing.assert_array_equal(in_memory(truth.test_images)[-1], decoding.decode(files["test/dog/3.jpg"]))
    assert truth.test_labels.tolist() == [0] * 4 + [1] * 4


def test_clean_labels_are_truth_alone(make: Make) -> None:
    files = pictures.class_folders(splits=("train", "test"))
    folder = make(files, clean={"train/cat/0.jpg": 1, "train/dog/0.jpg": 1, "test/cat/0.jpg": 1})
    labeled, truth = dataset.load(folder, image_size=8)
    assert labeled.labels.tolist() == [0] * 4 + [1] * 4
    assert truth.train_clean is not None
    assert truth.train_clean.tolist() == [1, -1, -1, -1, 1, -1, -1, -1]
    assert truth.test_labels is not None
    assert truth.test_labels.tolist()[:2] == [1, 0]
    assert dataset_index.read_facts(folder)["noise_rate"] == 0.5


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_another_size_is_made_once_and_kept(make: Make, resize: decoding.Resize) -> None:
    files = {f"{name}/{n}.png": pictures.encoded(n, 20 + n, 31, kind="PNG") for name in CLASSES for n in range(3)}
    folder = make(files)
    progress_calls: list[tuple[int, int]] = []
    labeled, _ = dataset.load(folder, image_size=16, resize=resize, progress=lambda *pair: progress_calls.append(pair))
    assert progress_calls == [(6, 6)]
    for row, path in enumerate(sorted(files)):
        picture = decoding.decode(files[path])
        geometry = Geometry(picture.shape[1], picture.shape[0], 16, resize)
        np.testing.assert_array_equal(in_memory(labeled.images)[row], decoding.resize(picture, geometry))
    again, _ = dataset.load(folder, image_size=16, resize=resize, progress=lambda *pair: progress_calls.append(pair))
    assert len(progress_calls) == 1
    assert torch.equal(in_memory(again.images), in_memory(labeled.images))


def test_writing_to_the_tensors_leaves_the_file_alone(make: Make) -> None:
    folder = make(pictures.class_folders())
    labeled, _ = dataset.load(folder, image_size=8)
    in_memory(labeled.images).zero_()
    assert in_memory(dataset.load(folder, image_size=8)[0].images).any()


def test_packing_does_not_change_the_digest(make: Make) -> None:
    files = pictures.class_folders()
    turned = dict(reversed(files.items()))
    digests = {dataset_index.read_facts(make(f, deflated=d))["digest"] for f in (files, turned) for d in (True, False)}
    assert len(digests) == 1
    changed = {**files, "cat/0.jpg": pictures.encoded(99)}
    relabelled = {path.replace("cat/0", "dog/9"): content for path, content in files.items()}
    assert (
        len(
            digests
            | {dataset_index.read_facts(make(changed))["digest"], dataset_index.read_facts(make(relabelled))["digest"]}
        )
        == 3
    )


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([(32, 32)], 32), ([(28, 28)], 28), ([(8, 8)], 32), ([(64, 64)], 64), ([(65, 65)], 96), ([(40, 40), (41, 41)], 64),
     ([(640, 480)], 128), ([(30, 30), (33, 33), (34, 34)], 64), ([(100, 50)], 96)],
)  # fmt: skip
def test_the_suggested_size_is_native_or_a_bucket(make: Make, sizes: list[tuple[int, int]], expected: int) -> None:
    files = {f"{name}/{w}.jpg": pictures.encoded(n, w, h) for n, name in enumerate(CLASSES) for w, h in sizes}
    assert dataset_index.read_facts(make(files))["image_size"] == expected


def test_the_index_says_where_the_original_bytes_are(make: Make) -> None:
    files = pictures.class_folders(per_class=2)
    folder = make(files, deflated=True)
    for number, path in enumerate(sorted(files)):
        assert dataset_index.read_original(folder, dataset_index.read_images(folder)[number]) == files[path]
    with dataset_index.open_index(folder) as index:
        row = index.execute('SELECT path, width, height, sha256, format FROM image WHERE "index" = 0').fetchone()
    assert row == ("cat/0.jpg", 8, 8, hashlib.sha256(files["cat/0.jpg"]).hexdigest(), "JPEG")
    assert [row.path for row in dataset_index.read_images(folder)] == sorted(files)


def test_sizes_are_those_after_exif(make: Make) -> None:
    files = {**pictures.class_folders(), "cat/turned.jpg": pictures.encoded(1, 20, 10, orientation=6)}
    result = {row.path: (row.width, row.height) for row in dataset_index.read_images(make(files))}
    assert result["cat/turned.jpg"] == (10, 20)


def test_threads_change_nothing(make: Make) -> None:
    noisy = {f"{name}/{n}.png": pictures.encoded(n, 80, 80, hue=hue, kind="PNG") for hue, name in enumerate(CLASSES)
             for n in range(90)}  # fmt: skip
    assert min(map(len, noisy.values())) > pixel_file.THREADED_FROM_BYTES
    noisy["cat/5.png"] = noisy["cat/5.png"][:-100]
    folders = [make(noisy, threads=threads) for threads in (1, 2, 3)]
    assert len({dataset_index.read_facts(folder)["digest"] for folder in folders}) == 1
    stored = {dataset_index.pixels_path(folder, 96, "squash").read_bytes() for folder in folders}
    assert len(stored) == 1
    assert len(next(iter(stored))) == pixel_file.NPY_HEADER_BYTES + 179 * 96 * 96 * 3


def test_Z3_an_entry_larger_than_it_says_ends_the_ingest(make: Make) -> None:
    result = refusal(make, pictures.class_folders(), deflated=True, change=lambda item: item._replace(image_bytes=50))
    assert result.code == "archive_too_large"


def test_Z5_one_bad_checksum_costs_one_image(make: Make) -> None:
    files = pictures.class_folders(per_class=10)
    for broken in ({"crc": 7}, {"image_bytes": 99_999}):
        change = lambda item, broken=broken: item._replace(**broken) if item.path == "cat/3.jpg" else item  # noqa: E731
        folder = make(files, deflated="image_bytes" in broken, change=change)
        assert report(folder) == [("cat/3.jpg", "bad_checksum", "excluded")]
        assert len(dataset_index.read_images(folder)) == 19


def test_IMG3_bad_images_are_left_out_by_name(make: Make) -> None:
    files = pictures.class_folders(per_class=20)
    whole = files["cat/3.jpg"]
    files |= {"cat/3.jpg": whole[: len(whole) // 2], "dog/1.jpg": b"", "dog/2.jpg": b"PK\3\4"}
    folder = make(files)
    assert report(folder) == [
        ("cat/3.jpg", "damaged_image", "excluded"),
        ("dog/1.jpg", "empty_file", "excluded"),
        ("dog/2.jpg", "unsupported_format", "excluded"),
    ]
    labeled, _ = dataset.load(folder, image_size=8)
    assert len(labeled) == 37
    np.testing.assert_array_equal(in_memory(labeled.images)[-1], decoding.decode(files["dog/9.jpg"]))


def test_IMG3_more_than_a_tenth_bad_is_refused(make: Make) -> None:
    files = pictures.class_folders(per_class=10)
    assert make({**files, "cat/1.jpg": b"x", "cat/2.jpg": b"x"}).exists()
    result = refusal(make, {**files, "cat/1.jpg": b"x", "cat/2.jpg": b"x", "cat/3.jpg": b"x"})
    assert result.code == "too_many_bad_images"
    assert "3 of 20" in result.detail


def test_Z9_what_the_bytes_reveal_is_reported(make: Make) -> None:
    one, two = pictures.encoded(50), pictures.encoded(51)
    files = pictures.class_folders(per_class=5)
    files = {f"train/{path}": content for path, content in files.items()}
    files |= {"train/cat/8.jpg": one, "train/cat/9.jpg": one, "train/dog/9.jpg": one}
    files |= {"train/dog/8.jpg": two, "test/dog/1.jpg": two}
    assert report(make(files)) == [
        ("train/cat/9.jpg", "duplicate_image", "warning"),
        ("train/dog/9.jpg", "duplicate_image", "warning"),
        ("train/dog/9.jpg", "same_image_two_labels", "warning"),
        ("test/dog/1.jpg", "train_test_leakage", "warning"),
    ]
    alone = {**pictures.class_folders(("cat",)), "dog/1.jpg": pictures.encoded(9)}
    assert report(make(alone)) == [("dog", "class_of_one", "warning")]


def test_Z9_classes_are_counted_after_decoding(make: Make) -> None:
    files = {**pictures.class_folders(("cat",), per_class=20), "dog/1.jpg": b"broken"}
    assert refusal(make, files).code == "too_few_classes"


def test_Z10_files_are_private(make: Make) -> None:
    folder = make(pictures.class_folders())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.name != "archive"}
    assert modes == {"index.sqlite": 0o600, "pixels-32-squash.npy": 0o600}


def test_INV4_nothing_unfinished_keeps_its_name(make: Make, tmp_path: Path) -> None:
    """Stopped by its caller, or refused: no pixels, no index."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(pictures.class_folders(), progress=stop)
    refusal(make, pictures.class_folders(("cat",)))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["archive", "archive"]


def test_a_disk_that_takes_no_more_is_an_error_and_leaves_nothing(make: Make) -> None:
    folder = make(pictures.class_folders())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            dataset.load(folder, image_size=48)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in folder.iterdir()) == ["archive", "index.sqlite", "pixels-32-squash.npy"]


def test_progress_counts_to_the_end(make: Make) -> None:
    progress_calls: list[tuple[int, int]] = []
    make(pictures.class_folders(per_class=100), progress=lambda *pair: progress_calls.append(pair))
    assert progress_calls == [(128, 200), (200, 200)]


def test_pixels_that_do_not_match_the_index_are_refused(make: Make) -> None:
    folder = make(pictures.class_folders())
    with sqlite3.connect(folder / "index.sqlite") as index:
        index.execute('DELETE FROM image WHERE "index" = 0')
    index.close()
    with pytest.raises(UnusableData) as caught:
        dataset.load(folder, image_size=32)
    assert caught.value.code == "dataset_corrupt"


def test_facts_are_json_and_lines_about_the_archive_reach_the_report(make: Make) -> None:
    line = ReportLine("a.txt", "ignored_file", "not opened", "ignored")
    folder = make(pictures.class_folders(), report=[line], facts={"layout": "folders"})
    assert report(folder) == [("a.txt", "ignored_file", "ignored")]
    result = json.loads(json.dumps(dataset_index.read_facts(folder), allow_nan=False))
    assert result["layout"] == "folders"
    assert (result["train_images"], result["test_images"], result["ignored"]) == (8, 0, 1)


def test_a_header_written_last_is_numpys(tmp_path: Path) -> None:
    squares = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    with pixel_file.PixelFile(tmp_path / "x.npy", 4) as file:
        file.append(squares[:2])
        file.append(squares[2:])
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), squares)
    assert zlib.crc32((tmp_path / "x.npy").read_bytes()[pixel_file.NPY_HEADER_BYTES :]) == zlib.crc32(squares.tobytes())


@given(st.integers(0, 500), st.floats(0, 0.99), st.integers(0, 2**31))
def test_a_split_is_a_partition_decided_by_its_seed(n: int, fraction: float, seed: int) -> None:
    train, validation = dataset.split(n, fraction, seed)
    assert sorted(train.tolist() + validation.tolist()) == list(range(n))
    assert torch.equal(dataset.split(n, fraction, seed)[1], validation)
    if n >= 2:
        assert len(train) >= 1
        assert bool(len(validation)) == (fraction > 0)
        assert abs(len(validation) - n * fraction) <= 1


def test_a_fraction_out_of_range_is_a_mistake() -> None:
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            dataset.split(10, fraction, 0)


def test_the_same_images_are_held_out_whichever_others_are_excluded() -> None:
    whole = torch.zeros(200, 2, 2, 3, dtype=torch.uint8)

    def images(numbers: torch.Tensor) -> LabeledImages:
        labels = torch.zeros(len(numbers), dtype=torch.int64)
        return LabeledImages(whole[numbers], labels, ("a",), selection=Selection(whole, numbers))

    numbers = torch.tensor([number for number in range(200) if number % 7])
    everything = LabeledImages(whole, torch.zeros(200, dtype=torch.int64), ("a",))
    _, before = dataset.hold_out(everything, 0.2, 5)
    train, after = dataset.hold_out(images(numbers), 0.2, 5)

    assert set(numbers[after].tolist()) == {number for number in before.tolist() if number % 7}
    assert sorted([*train.tolist(), *after.tolist()]) == list(range(len(numbers)))
    assert len(dataset.hold_out(images(numbers), 0.0, 5)[1]) == 0
    assert [len(part) for part in dataset.hold_out(images(before[:2]), 0.2, 5)] == [1, 1]  # all would be held out
