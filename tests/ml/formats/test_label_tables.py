"""Tables as people write them: names of columns, separators, encodings, missing labels, classes by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ml.formats.archive import read_archive
from ml.formats.class_list import MAX_CLASSES
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.table_columns import LABEL_COLUMNS, PATH_COLUMNS, ColumnNames
from tests import pictures
from tests.pictures import table

IMAGES = {f"images/{number}.jpg": pictures.encoded(number) for number in range(4)}
ROWS = ["0.jpg,cat", "1.jpg,dog", "2.jpg,cat", "3.jpg,dog"]
EXPECTED = {"images/0.jpg": "cat", "images/1.jpg": "dog", "images/2.jpg": "cat", "images/3.jpg": "dog"}
Read = Callable[..., Layout]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def resolve(files: Mapping[str, bytes], **columns: Any) -> Layout:
        (tmp_path / "upload").write_bytes(pictures.zipped(files))
        return resolve_labels(read_archive(tmp_path / "upload"), ColumnNames(**columns))

    return resolve


def error_of(read: Read, files: Mapping[str, bytes], **columns: str) -> DatasetFormatError:
    with pytest.raises(DatasetFormatError) as caught:
        read(files, **columns)
    return caught.value


def given_labels(layout: Layout) -> dict[str, str | None]:
    return {image.path: None if image.given is None else layout.classes[image.given] for image in layout.images}


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("path", PATH_COLUMNS)
def test_a_column_of_paths_is_found_without_case(read: Read, path: str, change: Callable[[str], str]) -> None:
    layout = read({**IMAGES, "labels.csv": table(f"{change(path)},label", ROWS)})

    assert given_labels(layout) == EXPECTED
    assert layout.facts["path_column"] == change(path)


@pytest.mark.parametrize("change", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("label", LABEL_COLUMNS)
def test_a_column_of_labels_is_found_among_others_without_case(
    read: Read, label: str, change: Callable[[str], str]
) -> None:
    rows = [f"{row},{number}" for number, row in enumerate(ROWS)]

    assert given_labels(read({**IMAGES, "labels.csv": table(f"file,{change(label)},score", rows)})) == EXPECTED


def test_of_two_path_columns_the_one_that_names_images_is_taken(read: Read) -> None:
    rows = [f"photo-{number},{row}" for number, row in enumerate(ROWS)]

    assert given_labels(read({**IMAGES, "labels.csv": table("file,path,label", rows)})) == EXPECTED


def test_columns_of_any_name_can_be_named_without_case(read: Read) -> None:
    rows = [f"{row},{row.split(',')[1]},x" for row in ROWS]
    files = {**IMAGES, "labels.csv": table("Photo,Guess,Expert,note", rows)}
    layout = read(files, path="photo", label="guess", clean="EXPERT")

    assert given_labels(layout) == EXPECTED
    assert all(image.given == image.clean for image in layout.images)
    assert (layout.facts["path_column"], layout.facts["clean_column"]) == ("Photo", "Expert")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_C4_separator_and_encoding_are_recognised(read: Read, separator: str, encoding: str) -> None:
    text = table("file,label", [row.replace("cat", "Kätzchen") for row in ROWS]).decode().replace(",", separator)
    layout = read({**IMAGES, "labels.csv": text.encode(encoding)})

    assert layout.classes == ("Kätzchen", "dog")
    assert given_labels(layout).keys() == IMAGES.keys()


def test_the_separator_is_that_of_the_header(read: Read) -> None:
    rows = [f'"{row.split(",")[0]}";"a, b{number % 2}"' for number, row in enumerate(ROWS)]

    assert read({**IMAGES, "labels.csv": table("file;label", rows)}).classes == ("a, b0", "a, b1")


def test_a_tsv_is_a_table(read: Read) -> None:
    data = table("file,label", ROWS).replace(b",", b"\t")

    assert given_labels(read({**IMAGES, "labels.tsv": data})) == EXPECTED


def test_a_refusal_repeats_no_control_character_of_the_table(read: Read) -> None:
    error = error_of(read, {**IMAGES, "labels.tsv": b'file\tlabel\n"1.jpg"x\tcat\n'})

    assert (error.code, error.detail.isprintable()) == ("bad_table", True)


@pytest.mark.parametrize("folder", ["", "images/", "tables/", "set/tables/"])
def test_paths_start_at_the_table_or_at_a_folder_above(read: Read, folder: str) -> None:
    wrapper = "set/" if folder.startswith("set/") else ""
    files = {f"{wrapper}{path}": data for path, data in IMAGES.items()}
    layout = read({**files, f"{folder}labels.csv": table("file,label", [f"images/{row}" for row in ROWS])})

    assert given_labels(layout) == {f"{wrapper}{path}": label for path, label in EXPECTED.items()}


def with_missing_labels(count: int, total: int = 20) -> dict[str, bytes]:
    rows = [f"{number}.jpg,{'' if number < count else ('cat', 'dog')[number % 2]}" for number in range(total)]
    images = {f"images/{number}.jpg": pictures.encoded(number) for number in range(total)}
    return {**images, "labels.csv": table("file,label", rows)}


def test_a_row_without_a_label_is_left_out_and_reported(read: Read) -> None:
    layout = read(with_missing_labels(2))

    assert len(layout.images) == 18
    assert [(line.path, line.code, line.level) for line in layout.report] == [
        ("images/0.jpg", "unlabelled_row", "excluded"),
        ("images/1.jpg", "unlabelled_row", "excluded"),
    ]


def test_more_than_a_tenth_without_a_label_is_refused(read: Read) -> None:
    error = error_of(read, with_missing_labels(3))

    assert (error.code, error.location) == ("empty_label", "labels.csv, line 2")
    assert "3 of 20 rows" in error.detail


def test_a_test_row_may_have_the_clean_label_alone(read: Read) -> None:
    rows = ["0.jpg,cat,dog,train", "1.jpg,dog,dog,train", "2.jpg,,cat,test", "3.jpg,,dog,test"]
    layout = read({**IMAGES, "labels.csv": table("file,label,true,split", rows)}, clean="true")

    assert given_labels(layout) == {**EXPECTED, "images/2.jpg": None, "images/3.jpg": None}


def test_null_in_json_lines_is_no_label(read: Read) -> None:
    rows = [f'{{"file": "{number}.jpg", "label": "{"cd"[number % 2]}"}}' for number in range(4)] * 3
    data = "\n".join([*rows, '{"file": "images/5.jpg", "label": null}', ""]).encode()
    layout = read({**IMAGES, "images/5.jpg": pictures.encoded(5), "labels.jsonl": data})

    assert layout.classes == ("c", "d")
    assert "images/5.jpg" not in given_labels(layout)


# --- classes by number --------------------------------------------------------------------------------------------

NUMBERED = table("file,label", [f"images/{number}.jpg,{(number + 1) % 2}" for number in range(4)])


@pytest.mark.parametrize("names", [b"dog\ncat\n", b"\xef\xbb\xbfdog\r\ncat"])
@pytest.mark.parametrize("folder", ["", "tables/"])
def test_numbers_are_the_names_of_the_class_list(read: Read, names: bytes, folder: str) -> None:
    layout = read({**IMAGES, f"{folder}labels.csv": NUMBERED, "classes.txt": names})

    assert given_labels(layout) == EXPECTED
    assert layout.facts["class_list"] == "classes.txt"
    assert layout.report == []


def test_without_a_class_list_numbers_are_names(read: Read) -> None:
    assert read({**IMAGES, "labels.csv": NUMBERED}).classes == ("0", "1")


@pytest.mark.parametrize("names", [b"dog\ncat\n", b"dog\n\ncat\n", b"cat\ncat\n", b"\xff\n"])
def test_a_class_list_beside_names_is_not_used(read: Read, names: bytes) -> None:
    layout = read({**IMAGES, "labels.csv": table("file,label", ROWS), "classes.txt": names})

    assert given_labels(layout) == EXPECTED
    assert [(line.path, line.code) for line in layout.report] == [("classes.txt", "ignored_file")]


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (b"dog\n", "unknown_class"),
        (b"", "unknown_class"),
        (b"dog\n\ncat\n", "bad_class_list"),
        (b"dog\ndog\n", "bad_class_list"),
        (b"dog\n\xff\n", "bad_class_list"),
        (b"dog\nc\x07t\n", "bad_class_list"),
        (b"dog\n" * (MAX_CLASSES + 1), "bad_class_list"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(read: Read, names: bytes, code: str) -> None:
    assert error_of(read, {**IMAGES, "labels.csv": NUMBERED, "classes.txt": names}).code == code


# --- columns that are not clear -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "columns", "code"),
    [
        ("photo,species", {}, "bad_columns"),
        ("file,a,b", {}, "ambiguous_label_column"),
        ("file,class,category", {}, "ambiguous_label_column"),
        ("file,a,b", {"label": "c"}, "unknown_column"),
        ("file,a,b", {"label": "a", "clean": "c"}, "unknown_column"),
        ("file,a,b", {"path": "c"}, "unknown_column"),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "birds.csv"])
def test_C1_columns_that_are_not_clear_are_named_with_a_sample_row(
    read: Read, name: str, header: str, columns: dict[str, str], code: str
) -> None:
    row = ",".join(["0.jpg", "cat", "wild"][: header.count(",") + 1])
    error = error_of(read, {**IMAGES, name: table(header, [row])}, **columns)

    assert (error.code, error.location) == (code, name)
    assert error.columns == tuple(header.split(","))
    assert error.sample_row == dict(zip(header.split(","), row.split(","), strict=True))


def test_the_columns_of_a_refusal_are_bounded(read: Read) -> None:
    header = "file," + ",".join(f"{number}{'x' * 300}" for number in range(200))
    row = "0.jpg," + ",".join(["y" * 20] * 200)
    error = error_of(read, {**IMAGES, "labels.csv": table(header, [row])})

    assert (len(error.columns), len(error.sample_row)) == (50, 50)
    assert max(map(len, error.columns)) <= 100
