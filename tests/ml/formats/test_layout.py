"""What an archive's files mean, Z6-Z9 and C1-C6: read, or refused with the entry, row or column at fault."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.errors import ArchiveRejected
from ml.formats.archive import read_archive
from ml.formats.entries import Limits
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.table_columns import ColumnNames
from tests import pictures
from tests.pictures import class_folders, table, with_table

JPEG = pictures.encoded(1)
Read = Callable[..., Layout]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def resolve(
        files: Mapping[str, bytes], *, tar: bool = False, folders: tuple[str, ...] = (), **columns: str
    ) -> Layout:
        path = tmp_path / "upload"
        path.write_bytes(pictures.tarred(files, compression="gz") if tar else pictures.zipped(files, folders=folders))
        names: dict[str, Any] = {name.removesuffix("_column"): column for name, column in columns.items()}
        return resolve_labels(read_archive(path), ColumnNames(**names))

    return resolve


def refusal(read: Read, files: Mapping[str, bytes], **columns: str) -> ArchiveRejected:
    """The problem with which the service refuses the files."""
    with pytest.raises(DatasetFormatError) as caught:
        read(files, **columns)
    problem = ArchiveRejected.from_format_error(caught.value)
    assert problem.http_status in (413, 422)
    return problem


def labels(result: Layout) -> dict[str, tuple[str, str | None, str | None]]:
    """(split, given, clean) by path, ids back to names."""
    names = {None: None} | dict(enumerate(result.classes))
    return {image.path: (image.split, names[image.given], names[image.clean]) for image in result.images}


def codes(result: Layout) -> dict[str, str]:
    return {line.path: line.code for line in result.report}


def pair(path: str = "") -> dict[str, bytes]:
    """The smallest data set: a cat and a dog below `path`."""
    return {f"{path}cat/1.jpg": pictures.encoded(1), f"{path}dog/1.jpg": pictures.encoded(2)}


# --- files that are no images -------------------------------------------------------------------------------------


def test_Z6_other_files_are_reported_and_never_opened(read: Read) -> None:
    others = {"cat/a.zip": b"PK\3\4", "cat/m.pkl": b"\x80", "README.md": b"#", "x.py": b"1/0", "dog/noext": b""}
    result = read({**pair(), **others})
    assert codes(result) == dict.fromkeys(others, "ignored_file")
    assert len(result.images) == 2


def test_Z7_junk_is_no_class(read: Read) -> None:
    junk = ["__MACOSX/cat/._1.jpg", "__MACOSX/x.jpg", "cat/.DS_Store", ".git/a.jpg", "cat/Thumbs.db", "dog/desktop.ini"]
    result = read({**pair("set/"), **dict.fromkeys(junk, JPEG)})
    assert codes(result) == dict.fromkeys(junk, "junk_file")
    assert result.classes == ("cat", "dog")


# --- class folders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar", [False, True])
@pytest.mark.parametrize("wrapper", ["", "set/", "outer/inner/"])
def test_Z8_class_folders_at_any_depth_under_any_wrapper(read: Read, wrapper: str, tar: bool) -> None:
    files = {**pair(wrapper), f"{wrapper}cat/deep/er/2.PNG": JPEG}
    result = read(files, tar=tar)
    assert result.classes == ("cat", "dog")
    assert labels(result)[f"{wrapper}cat/deep/er/2.PNG"] == ("train", "cat", None)
    assert result.facts["layout"] == "folders"


@pytest.mark.parametrize("wrapper", ["", "set/"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "test"), ("train", "test")),
        (("train", "val"), ("train", "test")),
        (("Train", "Test", "Validation"), ("train", "test", "train")),
        (("train",), ("train",)),
    ],
)
def test_Z8_split_folders_are_recognised(
    read: Read, wrapper: str, names: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    result = read({path: data for name in names for path, data in pair(f"{wrapper}{name}/").items()})
    assert [labels(result)[f"{wrapper}{name}/cat/1.jpg"][0] for name in names] == list(expected)
    assert result.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, "no_images"),
        ({"README.md": b"#"}, "no_images"),
        ({"1.jpg": JPEG, "2.jpg": JPEG}, "ambiguous_layout"),
        ({**pair(), "train/cat/2.jpg": JPEG}, "ambiguous_layout"),
        ({"train/1.jpg": JPEG, "test/2.jpg": JPEG}, "ambiguous_layout"),
        ({**pair("test/"), **pair("val/")}, "no_images"),
    ],
)
def test_Z8_nothing_usable_is_refused(read: Read, files: dict[str, bytes], code: str) -> None:
    assert refusal(read, files).code == code


def test_Z8_images_outside_of_classes_are_left_out_by_name(read: Read) -> None:
    assert codes(read({**pair(), "loose.jpg": JPEG})) == {"loose.jpg": "no_class_folder"}


def test_Z8_a_table_beside_class_folders_must_agree(read: Read) -> None:
    rows = ["cat/1.jpg,cat", "dog/1.jpg,dog"]
    assert read({**pair(), "labels.csv": table("file,label", rows)}).facts["layout"] == "table"
    swapped = {**pair(), "labels.csv": table("file,label", ["cat/1.jpg,dog", "dog/1.jpg,cat"])}
    result = refusal(read, swapped)
    assert (result.code, result.errors[0].pointer) == ("ambiguous_layout", "cat/1.jpg")
    assert labels(read(swapped, label_column="label"))["cat/1.jpg"][1] == "dog"


def test_Z8_a_table_of_something_else_leaves_the_folders_alone(read: Read) -> None:
    boxes = table("file,x0,y0", ["cat/1.jpg,1,2"])
    result = read({**pair(), "boxes.csv": boxes, "notes.csv": b"\xff\xfe"})
    assert result.facts["layout"] == "folders"
    assert codes(result) == {"boxes.csv": "other_table", "notes.csv": "other_table"}


@pytest.mark.parametrize("name", ["sizes.csv", "metadata.csv"])
def test_Z8_a_column_without_a_usual_name_is_not_learned_from_beside_class_folders(read: Read, name: str) -> None:
    sizes = {**pair(), name: table("filename,width", ["cat/1.jpg,640", "dog/1.jpg,480"])}
    assert refusal(read, sizes).code == "ambiguous_layout"
    assert refusal(read, sizes).members["columns"] == ["filename", "width"]
    assert read(sizes, label_column="width").classes == ("480", "640")
    equal = {**pair(), name: table("filename,species", ["cat/1.jpg,cat", "dog/1.jpg,dog"])}
    assert read(equal).facts["label_column"] == "species"


def test_Z9_classes(read: Read) -> None:
    assert refusal(read, {"cat/1.jpg": JPEG, "cat/2.jpg": JPEG}).code == "too_few_classes"
    assert refusal(read, {"set/train/cat/1.jpg": JPEG, "set/test/dog/1.jpg": JPEG}).code == "too_few_classes"
    result = read(pair(), folders=("bird",))
    assert codes(result) == {"bird/": "empty_class"}
    assert result.classes == ("cat", "dog")
    exact = ("01", "1", "NA", "None", "null", "nan", "=1+1", "Ä b", "😀")
    assert read({f"{name}/1.jpg": JPEG for name in exact}).classes == tuple(sorted(exact))


def test_C1_a_table_whose_names_differ_in_case_is_refused_with_an_example(read: Read) -> None:
    files = {"1.jpg": JPEG, "2.jpg": JPEG, "labels.csv": b"file,label\n1.JPG,cat\n2.JPG,dog\n"}
    refused = refusal(read, files)
    assert (refused.code, "'1.JPG'" in refused.detail, "'1.jpg'" in refused.detail) == ("no_images", True, True)


@pytest.mark.parametrize("folder", ["", "train/"])
def test_Z8_a_table_of_one_class_beside_class_folders_is_refused_with_an_example(read: Read, folder: str) -> None:
    rows = f"file,label\n{folder}cat/1.jpg,cat\n{folder}dog/1.jpg,cat\n"
    refused = refusal(read, {**pair(folder), "labels.csv": rows.encode()})
    assert refused.code == "ambiguous_layout"
    assert "contradict" in refused.detail
    assert f"{folder}dog/1.jpg" in refused.detail


# --- tables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["labels.csv", "metadata.csv", "images.csv", "anything.csv"])
@pytest.mark.parametrize("wrapper", ["", "set/"])
def test_a_table_labels_the_images_beside_it(read: Read, name: str, wrapper: str) -> None:
    files = {f"{wrapper}{path}": data for path, data in with_table(name=name).items()}
    result = read(files)
    assert labels(result)[f"{wrapper}images/1.jpg"] == ("train", "dog", None)
    assert result.facts == {
        "layout": "table", "path_column": "file", "label_column": "label", "clean_column": None, "class_list": None,
    }  # fmt: skip


@pytest.mark.parametrize("column", ["file", "file_name", "path"])
def test_paths_may_leave_out_the_images_folder(read: Read, column: str) -> None:
    images = {"images/1.jpg": JPEG, "images/2.jpg": pictures.encoded(2)}
    result = read({**images, "labels.csv": table(f"{column},label", ["1.jpg,cat", "./2.jpg,dog"])})
    assert labels(result) == {"images/1.jpg": ("train", "cat", None), "images/2.jpg": ("train", "dog", None)}


def test_train_and_test_tables_with_truth_apart(read: Read) -> None:
    files = {f"{split}/{number}.jpg": pictures.encoded(number) for split in ("train", "test") for number in (1, 2)}
    files["train.csv"] = table("file,clean,noisy,other", ["train/1.jpg,cat,dog,x", "train/2.jpg,dog,cat,y"])
    files["test.csv"] = table("file,clean", ["test/1.jpg,cat", "test/2.jpg,dog"])
    files["boxes.csv"] = table("file,label", ["train/1.jpg,cat"])
    result = read(files, label_column="noisy", clean_column="clean")
    assert labels(result)["train/1.jpg"] == ("train", "dog", "cat")
    assert labels(result)["test/1.jpg"] == ("test", None, "cat")
    assert codes(result) == {"boxes.csv": "other_table"}
    assert labels(read(files, label_column="noisy"))["test/1.jpg"] == ("test", "cat", None)
    assert result.classes == ("cat", "dog")


def test_metadata_in_split_folders_and_json_lines(read: Read) -> None:
    files = {f"{split}/{number}.jpg": JPEG for split in ("train", "test") for number in (1, 2)}
    for split in ("train", "test"):
        files[f"{split}/metadata.jsonl"] = (
            b'{"file_name": "1.jpg", "label": "cat"}\n{"file_name": "2.jpg", "label": 7}\n'
        )
    assert labels(read(files)) == {
        "train/1.jpg": ("train", "cat", None), "train/2.jpg": ("train", "7", None),
        "test/1.jpg": ("test", "cat", None), "test/2.jpg": ("test", "7", None),
    }  # fmt: skip


def test_one_table_may_name_splits_by_column_or_folder(read: Read) -> None:
    images = {f"{folder}/{number}.jpg": JPEG for folder in ("train", "val") for number in (1, 2)}
    rows = [f"{path},{'cat' if '1' in path else 'dog'}" for path in images]
    assert labels(read({**images, "labels.csv": table("file,label", rows)}))["val/1.jpg"][0] == "test"
    rows = [f"{row},{'test' if 'train' in row else 'train'}" for row in rows]
    result = read({**images, "labels.csv": table("file,label,split", rows)})
    assert labels(result)["train/1.jpg"][0] == "test"
    rows[0] = rows[0].replace("test", "tset")
    assert refusal(read, {**images, "labels.csv": table("file,label,split", rows)}).code == "bad_split"


@pytest.mark.parametrize(
    ("columns", "named", "code", "words"),
    [
        ("name,label", {}, "bad_columns", "it has name, label"),
        ("file,label,label", {}, "bad_columns", "appears twice"),
        ("file,label,", {}, "bad_columns", "no name"),
        ("file,a,b", {}, "ambiguous_label_column", "file, a, b"),
        ("file,label", {"label_column": "nope"}, "unknown_column", "'nope'"),
        ("file,label", {"clean_column": "nope"}, "unknown_column", "'nope'"),
    ],
)
def test_C1_columns_are_named(read: Read, columns: str, named: dict[str, str], code: str, words: str) -> None:
    row = ",".join(["1.jpg", "cat", "dog"][: columns.count(",") + 1])
    result = refusal(read, {"images/1.jpg": JPEG, "labels.csv": table(columns, [row])}, **named)
    assert result.code == code
    assert words in result.detail


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        (b"", "bad_table", None),
        (b"file,label\n", "bad_table", None),
        (b"file,label\n1.jpg,cat\n2.jpg\n", "ragged_row", 3),
        (b"file,label\n1.jpg,cat,x\n", "ragged_row", 2),
        (b'file,label\n1.jpg,"cat\n', "bad_table", 2),
        (b'file,label\n1.jpg,"cat"x\n', "bad_table", 2),
        (b"file,label\n1.jpg,\n", "empty_label", 2),
        (b"file,label\n,cat\n", "empty_path", 2),
    ],
)
def test_C1_broken_rows_are_named(read: Read, body: bytes, code: str, line: int | None) -> None:
    result = refusal(read, {"images/1.jpg": JPEG, "images/2.jpg": JPEG, "labels.csv": body})
    assert result.code == code
    assert result.errors[0].pointer == ("labels.csv" if line is None else f"labels.csv, line {line}")


@pytest.mark.parametrize(
    "body",
    [b"[1]\n", b"{\n", b'{"file": "1.jpg", "file": "2.jpg"}\n', b'{"file": "1.jpg"}\n{"path": "2.jpg"}\n', b"[" * 9999],
)
def test_C1_broken_json_lines_are_named(read: Read, body: bytes) -> None:
    assert refusal(read, {"1.jpg": JPEG, "metadata.jsonl": body}).code in ("bad_table", "ragged_row")


@pytest.mark.parametrize("name", ["\ud800", "a\0"])
def test_C1_a_column_whose_name_is_no_text_is_refused(read: Read, name: str) -> None:
    lines = [json.dumps({"file": f"{number}.jpg", name: "ab"[number]}) for number in range(2)]
    result = refusal(read, {"0.jpg": JPEG, "1.jpg": JPEG, "metadata.jsonl": "\n".join(lines).encode()})
    assert result.code == "bad_columns"


def test_C1_a_name_that_appears_twice_among_very_many_is_found_at_once(read: Read) -> None:
    header = ",".join(f'"{number}\n"' for number in range(100_000)) + ',file,"7\n"'
    assert refusal(read, {"1.jpg": JPEG, "labels.csv": f"{header}\n".encode()}).code == "bad_columns"


def test_C2_unknown_files_unlabelled_images_and_repeats_are_reported(read: Read) -> None:
    files = with_table(4)
    files["labels.csv"] += b"images/1.jpg,dog\nimages/99.jpg,cat\n"
    files["images/extra.jpg"] = JPEG
    result = read(files)
    assert codes(result) == {
        "images/99.jpg": "unknown_file", "images/1.jpg": "repeated_row", "images/extra.jpg": "unlabelled_image",
    }  # fmt: skip
    assert len(result.images) == 4
    assert refusal(read, {"x.jpg": JPEG, "labels.csv": table("file,label", ["y.jpg,cat"])}).code == "no_images"


def test_C2_one_file_under_two_labels_or_splits_is_refused(read: Read) -> None:
    files = with_table(4)
    files["labels.csv"] += b"images/1.jpg,cat\n"
    assert (result := refusal(read, files)).code == "conflicting_labels"
    assert result.errors[0].pointer == "images/1.jpg"
    both = {f"{number}.jpg": JPEG for number in (1, 2)}
    tables = {f"{split}.csv": table("file,label", ["1.jpg,cat", "2.jpg,dog"]) for split in ("train", "test")}
    assert refusal(read, {**both, **tables}).code == "ambiguous_layout"


def test_C3_labels_are_exact_text(read: Read) -> None:
    exact = ["a,b", '"q"', "😀", "=1+1", "-1", "NA", "01", " x ", "Ä", "x" * 200]
    rows = [f'{number}.jpg,"{name.replace(chr(34), chr(34) * 2)}"' for number, name in enumerate(exact)]
    images = {f"images/{number}.jpg": JPEG for number in range(len(exact))}
    assert read({**images, "labels.csv": table("file,label", rows)}).classes == tuple(sorted(exact))


@pytest.mark.parametrize(("label", "code"), [("a\0b", "bad_table"), ("a\x07b", "bad_label"), ("x" * 201, "bad_label")])
def test_C3_what_cannot_be_a_label_is_refused(read: Read, label: str, code: str) -> None:
    result = refusal(read, {"1.jpg": JPEG, "labels.csv": table("file,label", [f"1.jpg,{label}"])})
    assert result.code == code
    assert "line 2" in result.detail


@pytest.mark.parametrize(
    "change", [lambda t: b"\xef\xbb\xbf" + t, lambda t: t.replace(b"\n", b"\r\n"), lambda t: t[:-1]]
)
def test_C4_utf8_with_or_without_bom_and_any_line_end(read: Read, change: Callable[[bytes], bytes]) -> None:
    files = with_table()
    files["labels.csv"] = change(files["labels.csv"])
    assert len(read(files).images) == 6


def test_C4_other_encodings_are_refused(read: Read) -> None:
    data = "file,label\n1.jpg,Käfer\n".encode("latin-1")
    result = refusal(read, {"images/1.jpg": JPEG, "labels.csv": data})
    assert result.code == "bad_encoding"
    assert result.errors[0].pointer == "labels.csv, line 2"


def test_C5_long_lines_are_refused(read: Read) -> None:
    long = {"1.jpg": JPEG, "labels.csv": table("file,label", ["1.jpg,cat" + " " * 70_000])}
    assert (refusal(read, long).code, refusal(read, long).http_status) == ("table_too_large", 413)


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl"])
def test_C5_too_many_rows_are_refused(tmp_path: Path, name: str) -> None:
    rows = {"labels.csv": "file,label\n" + "1.jpg,a\n" * 4, "metadata.jsonl": '{"file": "1.jpg", "label": "a"}\n\n' * 4}
    (tmp_path / "upload").write_bytes(pictures.zipped({"1.jpg": JPEG, name: rows[name].encode()}))
    with pytest.raises(DatasetFormatError) as caught:
        resolve_labels(read_archive(tmp_path / "upload", Limits(table_rows=3)))
    assert caught.value.code == "table_too_large"


def test_C5_lines_of_a_large_table_are_counted_right(read: Read) -> None:
    body = b"file,label\n" + b"1.jpg,cat\n" * 10_000
    for line in (b"1.jpg,%s\n" % (b"c" * 70_000), b"1.jpg,%s\n" % (b"c" * 65_531)):
        result = refusal(read, {"1.jpg": JPEG, "labels.csv": body + line + body})
        assert (result.code, result.errors[0].pointer) == ("table_too_large", "labels.csv, line 10002")
    longest = body + b"1.jpg,%s\n" % (b"c" * 65_530) + body
    assert refusal(read, {"1.jpg": JPEG, "labels.csv": longest}).code == "bad_label"


def test_C5_a_table_beyond_its_limit_is_not_read(tmp_path: Path) -> None:
    for data in (pictures.zipped(with_table(9)), pictures.tarred(with_table(9), compression="gz")):
        (tmp_path / "upload").write_bytes(data)
        with pytest.raises(DatasetFormatError) as caught:
            resolve_labels(read_archive(tmp_path / "upload", Limits(table_bytes=100)))
        assert caught.value.code == "archive_too_large"


@pytest.mark.parametrize(
    "path", ["../1.jpg", "/1.jpg", "a/../1.jpg", "http://h/1.jpg", "file:///etc/1.jpg", "C:1.jpg", "a\\1.jpg"]
)
def test_C6_paths_out_of_the_archive_and_urls_are_refused(read: Read, path: str) -> None:
    result = refusal(read, {"1.jpg": JPEG, "labels.csv": table("file,label", [f"{path},cat"])})
    assert (result.code, result.errors[0].pointer) == ("unsafe_path", "labels.csv, line 2")


def test_two_tables_that_could_hold_the_labels_are_refused(read: Read) -> None:
    files = {**with_table(name="a.csv"), **with_table(name="b.csv")}
    assert (result := refusal(read, files)).code == "ambiguous_layout"
    assert "a.csv, b.csv" in result.detail


def test_a_column_without_a_table_is_refused(read: Read) -> None:
    assert refusal(read, class_folders(), label_column="label").code == "unknown_column"
