"""Versions of labels: what edits make of them, and what a training then loads."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ml.data import dataset, ingest
from ml.data.stored_rows import in_memory
from ml.formats import dataset_index, label_versions
from ml.formats.archive import read_archive
from ml.formats.label_versions import Edit, Labels, UploadedLabels
from ml.formats.layout import resolve_labels
from ml.formats.records import NO_LABEL
from tests import pictures

SIDE = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ready data set: 8 images of cats and dogs to train on (0-3 cats, 4-7 dogs), 8 to test on."""
    archive = tmp_path / "archive"
    archive.write_bytes(pictures.zipped(pictures.class_folders(splits=("train", "test"), side=SIDE)))
    layout = resolve_labels(read_archive(archive))
    ingest.ingest(archive, layout.images, layout.classes, tmp_path, report=layout.report, image_size=SIDE)
    return tmp_path


@pytest.fixture
def uploaded(folder: Path) -> UploadedLabels:
    return dataset_index.uploaded_labels(folder)


def edited(folder: Path, parent: int, *edits: Edit) -> int:
    """A new version on disk; its number."""
    uploaded = dataset_index.uploaded_labels(folder)
    labels = label_versions.read(folder, parent, uploaded)
    assert labels.apply(edits, parent + 1, uploaded) == []
    label_versions.write(folder, parent + 1, labels, uploaded)
    return parent + 1


def relabel(image: int, old: str | None, new: str | None) -> Edit:
    return Edit("relabel", image, old, new)


def test_a_version_is_read_as_it_was_written(folder: Path, uploaded: UploadedLabels) -> None:
    edits = [relabel(0, "cat", "dog"), Edit("confirm", 1, "cat", None), Edit("exclude", 12, "dog", None)]
    labels = Labels.of_upload(uploaded)
    assert labels.apply(edits, 2, uploaded) == []
    label_versions.write(folder, 2, labels, uploaded)

    assert label_versions.read(folder, 2, uploaded) == labels
    images = dataset_index.read_images(folder, version=2)
    assert [(i.number, i.given, i.status) for i in images if i.status != "unreviewed"] == [
        (0, 1, "relabelled"), (1, 0, "confirmed"), (12, 1, "excluded"),
    ]  # fmt: skip
    assert [image.given for image in dataset_index.read_images(folder)] == list(uploaded.given.values())


def test_counts_leave_excluded_images_out(folder: Path) -> None:
    version = edited(folder, 1, relabel(0, "cat", "dog"), Edit("exclude", 1, "cat", None))
    assert [count[1:] for count in dataset_index.count_classes(folder, version)] == [("cat", 2, 4), ("dog", 5, 4)]
    assert len(dataset_index.read_included(folder, version)) == 15


def test_edits_add_up_and_an_excluded_image_comes_back(folder: Path, uploaded: UploadedLabels) -> None:
    edited(folder, 1, relabel(0, "cat", "dog"), Edit("exclude", 1, "cat", None))
    edited(folder, 2, Edit("confirm", 0, "dog", None), relabel(1, "cat", "dog"))
    labels = label_versions.read(folder, 3, uploaded)
    assert labels.images[0] == ("dog", "confirmed", 3)
    assert labels.images[1] == ("dog", "relabelled", 3)
    assert label_versions.read(folder, 2, uploaded).images[1] == ("cat", "excluded", 2)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (relabel(0, "dog", "cat"), "label_moved_on"),
        (relabel(99, "dog", "cat"), "unknown_image"),
        (relabel(0, "cat", "fox"), "unknown_class"),
        (relabel(0, "cat", None), "unknown_class"),
        (relabel(0, "cat", "cat"), "same_label"),
        (Edit("confirm", 0, "cat", "dog"), "not_accepted"),
        (Edit("exclude", 0, None, None), "label_moved_on"),
        (Edit("add_class", None, None, "cat"), "class_exists"),
        (Edit("add_class", None, None, " "), "class_name"),
        (Edit("add_class", None, None, "a\nb"), "class_name"),
        (Edit("rename_class", None, "fox", "wolf"), "unknown_class"),
        (Edit("rename_class", None, "cat", "dog"), "class_exists"),
        (Edit("merge_class", None, "cat", "fox"), "unknown_class"),
        (Edit("merge_class", None, "cat", "cat"), "unknown_class"),
    ],
)
def test_an_edit_that_does_not_fit_is_named(uploaded: UploadedLabels, edit: Edit, code: str) -> None:
    faults = Labels.of_upload(uploaded).apply([Edit("confirm", 7, "dog", None), edit], 2, uploaded)
    assert [(fault.position, fault.code) for fault in faults] == [(1, code)]


def test_an_image_is_edited_once_in_a_version(uploaded: UploadedLabels) -> None:
    edits = [relabel(0, "cat", "dog"), Edit("confirm", 0, "dog", None)]
    assert [fault.code for fault in Labels.of_upload(uploaded).apply(edits, 2, uploaded)] == ["repeated_image"]


def test_classes_are_added_renamed_and_merged(folder: Path) -> None:
    version = edited(
        folder,
        1,
        Edit("add_class", None, None, "bird"),
        Edit("rename_class", None, "cat", "kitten"),
        relabel(0, "kitten", "bird"),
    )
    assert dataset_index.read_classes(folder, version) == ["bird", "dog", "kitten"]
    assert [image.given for image in dataset_index.read_images(folder, split="train", version=version)] == [
        0, 2, 2, 2, 1, 1, 1, 1,
    ]  # fmt: skip

    version = edited(folder, version, Edit("merge_class", None, "bird", "kitten"))
    assert dataset_index.read_classes(folder, version) == ["dog", "kitten"]
    assert [image.given for image in dataset_index.read_images(folder, split="train", version=version)] == [1] * 4 + [
        0
    ] * 4


def test_equal_labels_have_one_digest(folder: Path, uploaded: UploadedLabels) -> None:
    def digest(version: int) -> str:
        return label_versions.digest(label_versions.read(folder, version, uploaded), uploaded)

    edited(folder, 1, relabel(0, "cat", "dog"))
    edited(folder, 2, relabel(1, "cat", "dog"))
    assert len({digest(1), digest(2), digest(3)}) == 3
    label_versions.write(folder, 4, label_versions.read(folder, 2, uploaded), uploaded)
    assert digest(4) == digest(2)


def test_a_training_loads_the_labels_of_its_version(folder: Path) -> None:
    version = edited(
        folder,
        1,
        relabel(0, "cat", "dog"),
        Edit("exclude", 2, "cat", None),
        Edit("confirm", 4, "dog", None),
        Edit("exclude", 8, "cat", None),
    )
    before, truth_before = dataset.load(folder, image_size=SIDE)
    after, truth = dataset.load(folder, version=version, image_size=SIDE)

    assert before.selection is before.confirmed is truth_before.test_selection is None  # type: ignore[comparison-overlap]
    assert after.labels.tolist() == [1, 0, 0, 1, 1, 1, 1]
    used = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(in_memory(after.images), before.images[torch.tensor(used)])
    assert after.confirmed is not None
    assert after.confirmed.tolist() == [False, False, False, True, False, False, False]
    assert after.selection is not None
    assert after.selection.positions.tolist() == used
    assert truth.test_images is not None
    assert truth_before.test_images is not None
    assert torch.equal(in_memory(truth.test_images), in_memory(truth_before.test_images)[1:])
    assert truth.test_labels is not None
    assert truth.test_labels.tolist() == [0] * 3 + [1] * 4
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "archive", "index.sqlite", f"pixels-{SIDE}-squash.npy",
    ]  # fmt: skip


def test_the_columns_of_labels_are_those_of_the_images(folder: Path) -> None:
    version = edited(
        folder, 1, relabel(0, "cat", "dog"), Edit("exclude", 2, "cat", None), Edit("confirm", 4, "dog", None)
    )
    for number in (1, version):
        images = dataset_index.read_images(folder, version=number)
        given, clean, excluded, confirmed, train = dataset_index.read_label_columns(folder, number)

        assert [list(given), list(clean)] == [
            [NO_LABEL if label is None else label for label in labels]
            for labels in ([image.given for image in images], [image.clean for image in images])
        ]
        assert [image.status == "excluded" for image in images] == list(map(bool, excluded))
        assert [image.status == "confirmed" for image in images] == list(map(bool, confirmed))
        assert [image.split for image in images] == ["train"] * train + ["test"] * (len(images) - train)


def test_a_version_that_was_left_half_written_is_replaced(folder: Path, uploaded: UploadedLabels) -> None:
    label_versions.path_of(folder, 2).parent.mkdir()
    label_versions.path_of(folder, 2).write_bytes(b"torn")
    edited(folder, 1, relabel(0, "cat", "dog"))
    assert label_versions.read(folder, 2, uploaded).images == {0: ("dog", "relabelled", 2)}


def test_I3_classes_merged_one_into_the_other_take_no_minutes() -> None:
    count = 20_000
    labels = Labels([f"a{n}" for n in range(count)], {})
    merged = [Edit("merge_class", None, f"a{n}", "b1") for n in range(count)]
    added = [Edit("add_class", None, None, f"b{n}") for n in range(1, count)]
    chained = [Edit("merge_class", None, f"b{n}", f"b{n + 1}") for n in range(1, count - 1)]

    started = time.process_time()
    faults = labels.apply([*added, *merged, *chained], 2, UploadedLabels([], {}))

    assert (faults, labels.classes) == ([], [f"b{count - 1}"])
    assert time.process_time() - started < 5  # as a chain that is gone for every class it is half a minute


WRITER = """
import sys
from pathlib import Path
from ml.formats import dataset_index, label_versions
from ml.formats.label_versions import Edit, Labels

folder = Path(sys.argv[1])
uploaded = dataset_index.uploaded_labels(folder)
for version in range(2, 100_000):
    labels = Labels.of_upload(uploaded)
    edits = [Edit("confirm", image, labels.label_of(image, uploaded), None) for image in uploaded.given]
    assert labels.apply(edits, version, uploaded) == []
    label_versions.write(folder, version, labels, uploaded)
    print(version, flush=True)
"""


@pytest.mark.parametrize("wait_ms", [0, 1, 2, 3, 5, 8])
def test_a_writer_killed_at_any_moment_leaves_whole_versions(
    folder: Path, uploaded: UploadedLabels, wait_ms: int
) -> None:
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            assert writer.stdout.readline()
        time.sleep(wait_ms / 1000)  # somewhere in the next version
        writer.kill()
        written = 21 + len(writer.stdout.readlines())

    versions = sorted(int(path.stem) for path in (folder / label_versions.FOLDER).glob("[0-9]*.sqlite"))
    assert versions[: written - 1] == list(range(2, written + 1))
    for version in versions:
        assert len(label_versions.read(folder, version, uploaded).images) == len(uploaded.given)
    label_versions.write(folder, versions[-1] + 1, Labels.of_upload(uploaded), uploaded)
    assert list((folder / label_versions.FOLDER).glob(".*")) == []
