"""Images found by their labels and by a job's results, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.formats import dataset_index, image_query, image_results, label_versions
from ml.formats.image_query import ImageQuery
from ml.formats.image_results import ImageResult, Neighbour
from ml.formats.label_versions import Edit, Labels
from ml.formats.records import ImageRecord, ReportLine, Split

CLASSES = ["cat", "dog"]
PATHS = ["b/0.png", "b/1.PNG", "a/2.png", "a/3.png", "c/4.png"]
GIVEN = [0, 1, 0, 1, 1]


def record(number: int) -> ImageRecord:
    split: Split = "test" if number == 4 else "train"
    path, given = PATHS[number], GIVEN[number]
    return ImageRecord(path, split, given, None, 0, 0, 0, 0, None, number, 8, 8, f"{number}", "PNG")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images; in version 2 image 0 is a dog and image 3 is excluded."""
    dataset_index.write_index(tmp_path, map(record, range(5)), CLASSES, [], {})
    uploaded = dataset_index.uploaded_labels(tmp_path)
    labels = Labels.of_upload(uploaded)
    assert labels.apply([Edit("relabel", 0, "cat", "dog"), Edit("exclude", 3, "dog", None)], 2, uploaded) == []
    label_versions.write(tmp_path, 2, labels, uploaded)
    return tmp_path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Of a job that has judged images 0 to 3 and knows of image 4; 1 and 2 look the same, 3 is like no other."""
    path = tmp_path / image_results.FILE_NAME
    rows = [
        ImageResult(0, PATHS[0], "train", 0, False, 1, 1, 0.1, True, 0, None, 0.9, 0.1, is_outlier=False),
        ImageResult(1, PATHS[1], "train", 1, True, 1, 1, 0.8, False, is_outlier=False, duplicate_set=1),
        ImageResult(2, PATHS[2], "train", 0, False, 0, 0, 0.8, False, is_outlier=False, duplicate_set=1),
        ImageResult(3, PATHS[3], "train", 1, False, 0, 0, 0.3, True, is_outlier=True),
        ImageResult(4, PATHS[4], "test", 1, False, 0, 0, is_outlier=False),
    ]
    near = {0: [Neighbour(4, 0.9), Neighbour(2, 0.5)]}
    image_results.write(path, CLASSES, rows, near, [ReportLine("b/1.PNG", "near_duplicate", "It is.", "warning")])
    return path


@pytest.mark.parametrize(
    ("query", "version", "expected"),
    [
        (ImageQuery(), 1, [0, 1, 2, 3, 4]),
        (ImageQuery(numbers=[3, 0, 9]), 1, [0, 3]),
        (ImageQuery(numbers=[3, 0, 4], order="score"), 1, [0, 3]),
        (ImageQuery(numbers=[]), 1, []),
        (ImageQuery(split="train", label="dog"), 1, [1, 3]),
        (ImageQuery(split="train", label="dog"), 2, [0, 1, 3]),
        (ImageQuery(judged_label="cat"), 2, [0, 2]),
        (ImageQuery(label="bird"), 1, []),
        (ImageQuery(status=["excluded", "relabelled"]), 2, [0, 3]),
        (ImageQuery(text="B/"), 1, [0, 1]),
        (ImageQuery(text="%"), 1, []),
        (ImageQuery(order="path"), 1, [2, 3, 0, 1, 4]),
        (ImageQuery(order="score"), 1, [0, 3, 1, 2]),
        (ImageQuery(order="score", is_label_issue=True, status=["unreviewed"]), 2, []),
        (ImageQuery(predicted="cat"), 1, [2, 3, 4]),
        (ImageQuery(model="dog", order="path"), 1, [0, 1]),
        (ImageQuery(score_from=0.3, score_below=0.8), 1, [3]),
        (ImageQuery(is_outlier=True), 1, [3]),
        (ImageQuery(is_near_duplicate=True), 1, [1, 2]),
        (ImageQuery(is_near_duplicate=False, split="test"), 1, [4]),
        (ImageQuery(like=0, order="similarity"), 1, [4, 2]),
        (ImageQuery(like=0, order="index"), 1, [2, 4]),
        (ImageQuery(like=0, order="score"), 1, [2]),
        (ImageQuery(like=3, order="similarity"), 1, []),
    ],
)
def test_conditions_and_orders(
    folder: Path, results: Path, query: ImageQuery, version: int, expected: list[int]
) -> None:
    matches = image_query.find(folder, query, version=version, results=results)
    assert [row.image.number for row in matches] == expected

    # Pages of one image have the same images in the same order.
    paged, after = [], None
    while page := image_query.find(folder, query, version=version, results=results, after=after, limit=1):
        paged.append(page[0].image.number)
        after = page[0].position
    assert paged == expected


def test_results_come_with_the_images(folder: Path, results: Path) -> None:
    first = image_query.find(folder, ImageQuery(like=0, order="similarity"), results=results)[0]
    assert first.similarity == pytest.approx(0.9)
    assert first.result is not None
    assert (first.result.path, first.result.predicted, first.result.label_score) == ("c/4.png", 0, None)
    assert image_results.count(results) == (4, 2)
    assert [line.code for line in image_results.read_report(results)] == ["near_duplicate"]


def test_without_a_job_nothing_is_known_and_conditions_on_results_find_nothing(folder: Path) -> None:
    assert [row.result for row in image_query.find(folder, ImageQuery(order="path"))] == [None] * 5
    assert image_query.find(folder, ImageQuery(is_label_issue=True)) == []


def test_results_outlive_the_data_set(results: Path) -> None:
    query = ImageQuery(order="score", text="A/", status=["unreviewed"])
    matches = image_query.find(None, query, results=results)
    assert [(row.image.path, row.image.given) for row in matches] == [("a/3.png", 1), ("a/2.png", 0)]
