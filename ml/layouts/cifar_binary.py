"""CIFAR-10 and CIFAR-100 as records of bytes, their "binary version": one byte of class (CIFAR-100: the super-class,
then the class) and 3072 of pixels; the names of classes in text files beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ml.errors import UnusableData
from ml.layouts import cifar
from ml.layouts.pictures import DEFAULT, Pictures
from ml.layouts.source import Source, beside, text

TEN = {**{f"data_batch_{number}.bin": "train" for number in range(1, 6)}, "test_batch.bin": "test"}
HUNDRED = {"train.bin": "train", "test.bin": "test"}
TEN_NAMES, COARSE_NAMES, FINE_NAMES = "batches.meta.txt", "coarse_label_names.txt", "fine_label_names.txt"
LABEL_FILES = (*TEN, *HUNDRED, TEN_NAMES, COARSE_NAMES, FINE_NAMES, *cifar.HUMAN.values())


def read(source: Source) -> Pictures | None:
    """The set, or None where no such files are; UnusableData if they are damaged."""
    names = source.names()
    if (files := beside(names, "data_batch_1.bin")) is not None:
        return _read(source, files, TEN, {DEFAULT: TEN_NAMES})
    if (files := beside(names, "train.bin")) is not None and FINE_NAMES in files:
        columns = {cifar.COARSE: COARSE_NAMES, DEFAULT: FINE_NAMES}  # in the order of a record
        return _read(source, files, HUNDRED, columns)
    return None


def _read(source: Source, files: Mapping[str, str], splits: Mapping[str, str], columns: Mapping[str, str]) -> Pictures:
    names = {column: _lines(source, files, text) for column, text in columns.items()}
    batches = []
    for leaf, split in splits.items():
        if leaf in files:
            data = np.frombuffer(source.read(files[leaf]), np.uint8)
            record = len(columns) + cifar.PLANES
            if len(data) % record:
                raise UnusableData(f"{files[leaf]} is no whole number of {record}-byte records", code="dataset_corrupt")
            rows = data.reshape(-1, record)
            numbers = {column: rows[:, position] for position, column in enumerate(columns)}
            batches.append(cifar.batch(split, rows[:, len(columns) :], numbers, names, files[leaf]))
    return cifar.pictures(batches, names, source)


def _lines(source: Source, files: Mapping[str, str], leaf: str) -> Sequence[str]:
    if leaf not in files:
        raise UnusableData(f"{leaf}, which names the classes, is missing", code="dataset_corrupt")
    return [line.strip() for line in text(source, files[leaf]).splitlines() if line.strip()]
