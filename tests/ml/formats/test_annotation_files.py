"""Annotations of COCO, Label Studio and WebDataset label images; what is none of them is passed over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ml.formats.archive import read_archive
from ml.formats.entries import Limits
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.table_columns import ColumnNames
from tests import pictures

JPEG = pictures.encoded()
LABELS = {"0.jpg": "cat", "1.jpg": "dog", "2.jpg": "cat", "3.jpg": "dog"}
Read = Callable[..., Layout]


@pytest.fixture(params=["zip", "tar", "tar.gz"])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Read:
    def resolve(files: Mapping[str, bytes], limits: Limits = Limits(), **columns: Any) -> Layout:  # noqa: B008
        pack: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
            "zip": pictures.zipped,
            "tar": pictures.tarred,
            "tar.gz": lambda inner: pictures.tarred(inner, compression="gz"),
        }
        (tmp_path / "upload").write_bytes(pack[request.param](files))
        return resolve_labels(read_archive(tmp_path / "upload", limits), ColumnNames(**columns))

    return resolve


def labels(layout: Layout) -> dict[str, tuple[str, str | None]]:
    return {i.path: (i.split, None if i.given is None else layout.classes[i.given]) for i in layout.images}


def images(folder: str = "", names: Mapping[str, str] = LABELS) -> dict[str, bytes]:
    return {f"{folder}{name}": JPEG for name in names}


def coco(names: Mapping[str, Any] = LABELS) -> dict[str, Any]:
    """A document with several boxes an image, as detection sets have them; ids are neither dense nor in order."""
    categories = {"dog": 18, "cat": 17}
    return {
        "info": {"year": 2017},
        "images": [{"id": 900 - n, "file_name": name, "width": 8, "height": 8} for n, name in enumerate(names)],
        "annotations": [
            {"id": 2 * n + box, "image_id": 900 - n, "category_id": categories[label], "bbox": [box, 0, 4, 4],
             "segmentation": [[0.0, 0.0, 4.0, 4.0]], "area": 16, "iscrowd": 0}
            for n, label in enumerate(names.values())
            for box in range(2)
        ],
        "categories": [{"id": id, "name": name, "supercategory": "animal"} for name, id in categories.items()],
    }  # fmt: skip


def task(name: str, label: str, **fields: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    result = {"value": {"choices": [label]}, "from_name": "choice", "to_name": "image", "type": "choices"}
    return {
        "id": 7,
        "annotations": [{"id": 3, "was_cancelled": False, "result": [result]}],
        "data": {"image": name},
        **fields,
    }


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("folders", "documents"),
    [
        (("train2017/", "val2017/"), ("annotations/instances_train2017.json", "annotations/instances_val2017.json")),
        (("images/train/", "images/val/"), ("annotations/train.json", "annotations/val.json")),
        (("train/", "valid/"), ("train/_annotations.coco.json", "valid/_annotations.coco.json")),
        (("set/train/", "set/test/"), ("set/train.json", "set/test.json")),
    ],
)
def test_coco_documents_label_the_images_of_their_splits(
    read: Read, folders: tuple[str, str], documents: tuple[str, str]
) -> None:
    others = {"7.jpg": "dog", "8.jpg": "cat"}
    files = {**images(folders[0]), **images(folders[1], others)}
    layout = read({**files, documents[0]: dump(coco()), documents[1]: dump(coco(others))})

    assert labels(layout) == {
        **{folders[0] + name: ("train", label) for name, label in LABELS.items()},
        **{folders[1] + name: ("test", label) for name, label in others.items()},
    }
    assert {line.code for line in layout.report} <= {"repeated_row"}


@pytest.mark.parametrize(
    "address",
    ["{}", "/data/local-files/?d=pics%2F{}", "/data/upload/12/0a1b2c3d-{}", "/data/upload/3/{}", "pics/{}"],
)
@pytest.mark.parametrize("name", ["tasks.json", "project-1-at-2026-01-01-00-00-deadbeef.json"])
def test_tasks_of_label_studio_label_the_images_that_they_address(read: Read, address: str, name: str) -> None:
    tasks = [task(address.format(image), label) for image, label in LABELS.items()]
    tasks[0]["annotations"].append({"was_cancelled": True, "result": [{"value": {"choices": ["dog"]}}]})
    folder = "" if address == "{}" or "upload" in address else "pics/"

    assert labels(read({**images(folder), name: dump(tasks)})) == {
        folder + image: ("train", label) for image, label in LABELS.items()
    }


def test_data_of_tasks_are_columns(read: Read) -> None:
    tasks = [task(name, label) for name, label in LABELS.items()]
    for number, item in enumerate(tasks):
        item["data"] |= {"split": ("train", "test")[number == 3], "truth": ("dog", "cat")[number % 2]}
    layout = read({**images(), "tasks.json": dump(tasks)}, clean="truth")

    assert labels(layout)["3.jpg"] == ("test", "dog")
    assert all(image.clean is not None and image.clean != image.given for image in layout.images)


def test_short_forms_of_label_studio_are_tables(read: Read) -> None:
    """JSON_MIN and CSV: the answer is a column with the name that the project gave it."""
    short = [
        {"image": f"/data/local-files/?d=pics/{name}", "id": n, "choice": label, "annotator": 1, "lead_time": 1.5}
        for n, (name, label) in enumerate(LABELS.items())
    ]
    rows = [f"/data/upload/1/0123abcd-{name},{n},{label},1" for n, (name, label) in enumerate(LABELS.items())]
    table = pictures.table("image,id,choice,annotator", rows)

    expected = {f"pics/{name}": ("train", label) for name, label in LABELS.items()}
    assert labels(read({**images("pics/"), "result.json": dump(short)})) == expected
    assert labels(read({**images("pics/"), "pics/project.csv": table})) == expected


@pytest.mark.parametrize("kind", ["json", "cls", "both"])
def test_samples_of_a_webdataset_are_labelled_by_their_parts(read: Read, kind: str) -> None:
    files = {}
    for number, label in enumerate(LABELS.values()):
        for split in ("train", "test"):
            stem = f"{split}/00{number}"
            files[f"{stem}.jpg"] = JPEG
            if kind != "cls":
                files[f"{stem}.json"] = dump({"label": label, "size": [8, 8]})
            if kind != "json":
                files[f"{stem}.cls"] = str(int(label == "dog")).encode() + b"\n"
    files |= {"classes.txt": b"cat\ndog\n"} if kind == "cls" else {}
    layout = read(files)

    assert labels(layout) == {
        f"{split}/00{n}.jpg": (split, label) for n, label in enumerate(LABELS.values()) for split in ("train", "test")
    }
    assert [line.code for line in layout.report] == []


@pytest.mark.parametrize(
    ("files", "code", "named"),
    [
        (
            {**images(), "a.json": dump({**coco(), "categories": [{"id": 17, "name": "cat"}]})},
            "bad_table",
            "annotation 3",
        ),
        ({**images(), "a.json": dump({**coco(), "images": coco()["images"][:2]})}, "bad_table", "annotation 5"),
        (
            {**images(), "t.json": dump([task(n, x) for n, x in LABELS.items()] + [task("0.jpg", "dog")])},
            "conflicting_labels",
            "0.jpg",
        ),
        ({**images(), "t.json": dump([task(n, "a\0b") for n in LABELS])}, "bad_label", "entry 1"),
        ({**images(), "t.json": dump([task("../x.jpg", "cat"), task("0.jpg", "cat")])}, "unsafe_path", "entry 1"),
        ({**images(), "t.json": dump([task(n, "") for n in LABELS])}, "empty_label", "entry 1"),
        ({"0.jpg": JPEG, "0.json": b"{", "1.jpg": JPEG, "1.json": b"{}"}, "bad_table", "0.json"),
        ({"0.jpg": JPEG, "0.json": b"[]"}, "bad_table", "0.json"),
        ({"0.jpg": JPEG, "0.cls": b"\xff"}, "bad_encoding", "0.cls"),
    ],
)
def test_what_cannot_be_understood_is_refused_and_named(
    read: Read, files: Mapping[str, bytes], code: str, named: str
) -> None:
    with pytest.raises(DatasetFormatError) as refused:
        read(files)
    assert refused.value.code == code
    assert named in (refused.value.location or "")


OTHERS = {
    "a list": b"[1, 2]",
    "an object": b'{"images": 3}',
    "captions": dump({"images": [], "annotations": [{"caption": "a cat"}]}),
    "of other images": dump(coco({"elsewhere.jpg": "cat", "nowhere.jpg": "dog"})),
    "records without a label": dump([{"file": "cat/0.jpg", "width": 1, "height": 2}]),
    "deeply nested": b"[" * 100_000,
    "a large number": b'[{"file": ' + b"9" * 10_000 + b"}]",
    "no JSON": b"\xff\xfe\x00{",
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_other_documents_leave_class_folders_as_they_are(read: Read, content: bytes) -> None:
    layout = read({"cat/0.jpg": JPEG, "dog/1.jpg": JPEG, "notes.json": content, "cat/0.json": b"{"})

    assert labels(layout) == {"cat/0.jpg": ("train", "cat"), "dog/1.jpg": ("train", "dog")}
    assert {(line.path, line.code) for line in layout.report} == {
        ("notes.json", "ignored_file"), ("cat/0.json", "ignored_file"),
    }  # fmt: skip


def test_C5_a_document_beyond_the_limits_is_refused(read: Read) -> None:
    files = {**images(), "a.json": dump(coco())}

    with pytest.raises(DatasetFormatError, match="more than 3 rows"):
        read(files, Limits(table_rows=3))
    with pytest.raises(DatasetFormatError) as refused:
        read(files, Limits(table_bytes=100))
    assert refused.value.code == "archive_too_large"
