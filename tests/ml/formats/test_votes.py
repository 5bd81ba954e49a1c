"""Votes of several annotators: columns of a table, their majority, and the tables of the index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ml.data import ingest
from ml.formats import dataset_index, votes
from ml.formats.archive import read_archive
from ml.formats.errors import DatasetFormatError
from ml.formats.layout import Layout, resolve_labels
from ml.formats.table_columns import ColumnNames
from tests import pictures
from tests.pictures import table

IMAGES = {f"images/{number}.jpg": pictures.encoded(number) for number in range(5)}
HEADER = "file,clean,random_label1,random_label2,random_label3"  # as CIFAR-10N has it
ROWS = ["0.jpg,cat,cat,cat,dog", "1.jpg,dog,dog,,dog", "2.jpg,cat,dog,cat,frog", "3.jpg,dog,dog,dog,dog"]
ANNOTATORS = ("random_label1", "random_label2", "random_label3")
Read = Callable[..., Layout]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def read(archive: Path) -> Read:
    def resolve(files: Mapping[str, bytes], **columns: Any) -> Layout:
        archive.write_bytes(pictures.zipped(files))
        return resolve_labels(read_archive(archive), ColumnNames(**{"annotators": ANNOTATORS, **columns}))

    return resolve


def given_labels(layout: Layout) -> dict[str, str | None]:
    return {image.path[7:8]: None if image.given is None else layout.classes[image.given] for image in layout.images}


def code_of(read: Read, files: Mapping[str, bytes], **columns: Any) -> str:
    with pytest.raises(DatasetFormatError) as caught:
        read(files, **columns)
    return caught.value.code


@pytest.mark.parametrize(
    ("of_image", "label"),
    [
        (("a", "b", "b"), "b"),
        (("b", "a", "c"), "b"),  # a tie: the annotator named first
        ((None, "c", "a"), "c"),
        (("c", "a", "b", "b", "a"), "a"),  # of a and b, the one that comes first in the order of annotators
        ((None, None), None),
        ((), None),
    ],
)
def test_the_majority_and_its_ties(of_image: tuple[str | None, ...], label: str | None) -> None:
    assert votes.majority(of_image) == label


@pytest.mark.parametrize("label", [None, votes.CONSENSUS])
def test_the_majority_is_learned_from_and_every_vote_is_there(read: Read, label: str | None) -> None:
    layout = read({**IMAGES, "labels.csv": table(HEADER, ROWS)}, label=label, clean="clean")

    assert given_labels(layout) == {"0": "cat", "1": "dog", "2": "dog", "3": "dog"}
    assert layout.facts["label_column"] == votes.CONSENSUS
    assert layout.classes == ("cat", "dog")  # frog is a vote, and no class
    assert layout.votes is not None
    assert layout.votes.annotators == ANNOTATORS
    assert layout.votes.by_path["images/1.jpg"] == ("dog", None, "dog")
    assert layout.votes.by_path["images/2.jpg"] == ("dog", "cat", "frog")


def test_one_annotator_may_be_learned_from_beside_the_votes(read: Read) -> None:
    files = {**IMAGES, "labels.csv": table(HEADER, ROWS)}
    layout = read(files, label="random_label3", clean="clean")

    assert given_labels(layout) == {"0": "dog", "1": "dog", "2": "frog", "3": "dog"}
    assert layout.votes is not None
    assert len(layout.votes.by_path) == 4
    assert code_of(read, files, label="random_label2") == "empty_label"  # who has not voted on a quarter of them


def test_a_column_that_is_named_consensus_is_a_column(read: Read) -> None:
    rows = [f"{row},{label}" for row, label in zip(ROWS, ("dog", "cat", "dog", "cat"), strict=True)]
    layout = read({**IMAGES, "labels.csv": table(f"{HEADER},consensus", rows)}, label="consensus")

    assert given_labels(layout) == {"0": "dog", "1": "cat", "2": "dog", "3": "cat"}


def test_a_test_table_needs_no_annotators(read: Read) -> None:
    test = {"test.csv": table("file,label", ["4.jpg,cat"])}
    layout = read({**IMAGES, "train.csv": table(HEADER, ROWS), **test})

    assert given_labels(layout) == {"0": "cat", "1": "dog", "2": "dog", "3": "dog", "4": "cat"}
    assert layout.votes is not None
    assert "images/4.jpg" not in layout.votes.by_path


def test_numbers_are_named_by_the_list_of_classes(read: Read) -> None:
    rows = ["0.jpg,0,0,1", "1.jpg,1,1,1", "2.jpg,2,2,0", "3.jpg,2,1,1"]
    files = {**IMAGES, "classes.txt": b"cat\ndog\nfrog\n"}
    header = HEADER.replace("clean,", "")
    layout = read({**files, "labels.csv": table(header, rows)})

    assert given_labels(layout) == {"0": "cat", "1": "dog", "2": "frog", "3": "dog"}
    assert layout.votes is not None
    assert layout.votes.by_path["images/3.jpg"] == ("frog", "dog", "dog")
    assert code_of(read, {**files, "labels.csv": table(header, [*rows, "4.jpg,0,0,3"])}) == "unknown_class"


def test_what_is_not_clear_is_refused(read: Read) -> None:
    whole = {**IMAGES, "labels.csv": table(HEADER, ROWS)}
    assert code_of(read, whole, annotators=("random_label1", "random_label4")) == "unknown_column"
    repeated = {**IMAGES, "labels.csv": table(HEADER, [*ROWS, "0.jpg,cat,cat,cat,cat"])}
    assert code_of(read, repeated) == "conflicting_labels"
    nobody = {**IMAGES, "labels.csv": table(HEADER, [*ROWS[:2], "2.jpg,cat,,,", "3.jpg,dog,dog,,"])}
    assert code_of(read, nobody) == "empty_label"
    folders = {f"{name}/{n}.jpg": pictures.encoded(n) for n, name in enumerate(("cat", "dog"))}
    assert code_of(read, folders) == "unknown_column"


def test_the_index_has_the_votes_and_both_rules(read: Read, archive: Path, tmp_path: Path) -> None:
    layout = read({**IMAGES, "labels.csv": table(HEADER, [*ROWS, "4.jpg,cat,cat,cat,cat"])})
    folder = tmp_path / "set"
    folder.mkdir()
    facts = ingest.ingest(archive, layout.images, layout.classes, folder, facts=layout.facts, votes=layout.votes)
    index = folder / dataset_index.INDEX_FILE
    rows = votes.read(index)

    assert votes.read_annotators(index) == list(ANNOTATORS)
    assert [row.votes for row in rows] == [
        ("cat", "cat", "dog"),
        ("dog", None, "dog"),
        ("dog", "cat", "frog"),
        ("dog", "dog", "dog"),
        ("cat", "cat", "cat"),
    ]
    assert [row.consensus.majority for row in rows] == ["cat", "dog", "dog", "dog", "cat"]
    assert [row.consensus.majority_share for row in rows] == pytest.approx([2 / 3, 1, 1 / 3, 1, 1])
    assert votes.read_consensus(index) == [row.consensus for row in rows]
    assert [row.consensus.image for row in votes.read(index, disagreeing=True)] == [0, 2]
    assert [row.consensus.image for row in votes.read(index, disagreeing=False)] == [1, 3, 4]
    assert votes.read(index, after=1, limit=2) == rows[2:4]
    assert votes.read(index, numbers=[4, 0]) == [rows[0], rows[4]]
    annotators: Any = facts["annotators"]
    assert [(who["name"], who["votes"]) for who in annotators] == list(zip(ANNOTATORS, (5, 4, 5), strict=True))
    assert [who["agreement"]["majority"] for who in annotators] == pytest.approx([1, 3 / 4, 3 / 5])
    assert dataset_index.read_facts(folder)["annotators"] == annotators


def test_an_index_from_before_there_were_votes_has_none(tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    database = sqlite3.connect(index)
    database.executescript(dataset_index.SCHEMA)
    database.close()

    assert votes.read_annotators(index) == []
    assert votes.read(index) == []
    assert votes.read_consensus(index) == []


def test_names_of_columns_are_separated_as_in_csv() -> None:
    assert votes.parse_names('a, b ,"c, d"') == ("a", "b", "c, d")
    assert votes.parse_names("") == ()
