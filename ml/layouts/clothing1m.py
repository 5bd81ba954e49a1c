"""Clothing1M as its annotation files describe it: lists of keys, a path a line, and tables of a path, a space, a class.

To learn from: noisy_train_key_list with noisy_label_kv, and clean_label_kv where it knows a picture. To test on:
clean_test_key_list. The clean training and validation lists stay out: no label here is learned from that an expert
has checked. Files may end in .txt; classes have names where category_names_eng is there, and numbers else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ml.data import decoding
from ml.errors import UnusableData
from ml.layouts.pictures import DEFAULT, Pictures
from ml.layouts.source import Source, beside, text

CLEAN = "clean"
TRAIN, TEST, GIVEN, TRUE, NAMES = (
    "noisy_train_key_list", "clean_test_key_list", "noisy_label_kv", "clean_label_kv", "category_names_eng",
)  # fmt: skip
LABEL_FILES = tuple(f"{leaf}{ending}" for leaf in (TRAIN, TEST, GIVEN, TRUE, NAMES) for ending in ("", ".txt"))


def read(source: Source) -> Pictures | None:
    """The set, or None where no such files are; UnusableData if a file is missing or damaged."""
    names = source.names()
    files = beside(names, TRAIN) or beside(names, f"{TRAIN}.txt")
    if files is None:
        return None
    found = {leaf.removesuffix(".txt"): name for leaf, name in files.items()}
    classes = _lines(source, found[NAMES]) if NAMES in found else None
    noisy, clean = _table(source, found, GIVEN, classes), _table(source, found, TRUE, classes)
    train = _lines(source, found[TRAIN])
    test = _lines(source, found[TEST]) if TEST in found else []
    if missing := next((key for key in train if key not in noisy), None):
        raise UnusableData(f"{GIVEN} has no label of {missing}", code="dataset_corrupt")
    places = _Places(PurePosixPath(found[TRAIN]).parent, set(names))
    keys = [(key, "train") for key in train] + [(key, "test") for key in test if key in clean]
    there = [(place, key, split) for key, split in keys if (place := places(key)) is not None]
    paths = [place for place, _, _ in there]

    def encoded(number: int) -> bytes:
        return source.read(paths[number])

    def pixels(number: int) -> NDArray[np.uint8]:
        return decoding.decode(encoded(number))

    return Pictures(
        paths,
        [split for _, _, split in there],
        {
            DEFAULT: [noisy[key] if split == "train" else "" for _, key, split in there],
            CLEAN: [clean.get(key, "") for _, key, _ in there],
        },
        pixels,
        encoded,
        {DEFAULT: CLEAN},
        tuple(f"{key}: no such picture" for key, _ in keys if places(key) is None),
    )


def _table(source: Source, found: Mapping[str, str], leaf: str, classes: list[str] | None) -> dict[str, str]:
    """The class of each key."""
    if leaf not in found:
        raise UnusableData(f"{leaf} is missing", code="dataset_corrupt")
    labels = {}
    for number, line in enumerate(_lines(source, found[leaf]), 1):
        key, _, label = line.rpartition(" ")
        if not key or not label.isdecimal() or (classes is not None and int(label) >= len(classes)):
            raise UnusableData(f"{found[leaf]}, line {number}: not a path, a space and a class", code="dataset_corrupt")
        labels[key] = f"{int(label):02}" if classes is None else classes[int(label)]
    return labels


class _Places:
    """Where a key's picture lies: keys are paths from the lists' folder, or from one above it."""

    def __init__(self, home: PurePosixPath, names: set[str]) -> None:
        self._homes, self._names = (home, *home.parents), names

    def __call__(self, key: str) -> str | None:
        return next((path for home in self._homes if (path := (home / key).as_posix()) in self._names), None)


def _lines(source: Source, name: str) -> list[str]:
    return [line.strip() for line in text(source, name).splitlines() if line.strip()]
