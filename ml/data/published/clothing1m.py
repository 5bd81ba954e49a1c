"""Clothing1M as its annotation files describe it: lists of keys, a path a line, and tables of a path, a space, a class.

To learn from: noisy_train_key_list with noisy_label_kv, and clean_label_kv where it knows a picture. To test on:
clean_test_key_list. The clean training and validation lists stay out: no label here is learned from that an expert
has checked. Files may end in .txt; classes have names where category_names_eng is there, and numbers else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ml.data import decoding
from ml.data.published.published_dataset import DEFAULT, PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.errors import UnusableData

CLEAN = "clean"
TRAIN, TEST, GIVEN, TRUE, NAMES = (
    "noisy_train_key_list", "clean_test_key_list", "noisy_label_kv", "clean_label_kv", "category_names_eng",
)  # fmt: skip
LABEL_FILES = tuple(f"{leaf}{ending}" for leaf in (TRAIN, TEST, GIVEN, TRUE, NAMES) for ending in ("", ".txt"))


def read(source: SourceFiles) -> PublishedDataset | None:
    """The data set, or None where there are no such files; UnusableData if a file is missing or damaged."""
    files = source.find_siblings(TRAIN) or source.find_siblings(f"{TRAIN}.txt")
    if files is None:
        return None
    lists = {leaf.removesuffix(".txt"): name for leaf, name in files.items()}
    classes = source.read_lines(lists[NAMES]) if NAMES in lists else None
    noisy, clean = _read_labels(source, lists, GIVEN, classes), _read_labels(source, lists, TRUE, classes)
    train = source.read_lines(lists[TRAIN])
    test = source.read_lines(lists[TEST]) if TEST in lists else []
    if missing := next((key for key in train if key not in noisy), None):
        raise UnusableData(f"{GIVEN} has no label of {missing}", code="dataset_corrupt")
    find_image = _image_finder(PurePosixPath(lists[TRAIN]).parent, set(source.names))
    keys = [(key, "train") for key in train] + [(key, "test") for key in test if key in clean]
    there = [(path, key, split) for key, split in keys if (path := find_image(key)) is not None]
    paths = [path for path, _, _ in there]

    def encoded(number: int) -> bytes:
        return source.read(paths[number])

    def pixels(number: int) -> NDArray[np.uint8]:
        return decoding.decode(encoded(number))

    return PublishedDataset(
        paths,
        [split for _, _, split in there],
        {
            DEFAULT: [noisy[key] if split == "train" else "" for _, key, split in there],
            CLEAN: [clean.get(key, "") for _, key, _ in there],
        },
        pixels,
        encoded,
        {DEFAULT: CLEAN},
        tuple((key, "no such image") for key, _ in keys if find_image(key) is None),
    )


def _read_labels(source: SourceFiles, lists: Mapping[str, str], leaf: str, classes: list[str] | None) -> dict[str, str]:
    """The class of each key."""
    if leaf not in lists:
        raise UnusableData(f"{leaf} is missing", code="dataset_corrupt")
    labels = {}
    for number, line in enumerate(source.read_lines(lists[leaf]), 1):
        key, _, label = line.rpartition(" ")
        if not key or not label.isdecimal() or (classes is not None and int(label) >= len(classes)):
            raise UnusableData(f"{lists[leaf]}, line {number}: not a path, a space and a class", code="dataset_corrupt")
        labels[key] = f"{int(label):02}" if classes is None else classes[int(label)]
    return labels


def _image_finder(home: PurePosixPath, names: set[str]) -> Callable[[str], str | None]:
    """A function from a key to its image: keys are paths from the folder of the lists, or from one above it."""
    folders = (home, *home.parents)

    def find(key: str) -> str | None:
        return next((path for folder in folders if (path := (folder / key).as_posix()) in names), None)

    return find
