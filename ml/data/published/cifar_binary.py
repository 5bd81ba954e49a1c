"""CIFAR-10 and CIFAR-100 as records of bytes, their "binary version": one byte of class (CIFAR-100: the super-class,
then the class) and 3072 of pixels; the names of classes in text files beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ml.data.published import cifar
from ml.data.published.published_dataset import DEFAULT, PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.errors import UnusableData

TEN = {**{f"data_batch_{number}.bin": "train" for number in range(1, 6)}, "test_batch.bin": "test"}
HUNDRED = {"train.bin": "train", "test.bin": "test"}
TEN_NAMES, COARSE_NAMES, FINE_NAMES = "batches.meta.txt", "coarse_label_names.txt", "fine_label_names.txt"
LABEL_FILES = (*TEN, *HUNDRED, TEN_NAMES, COARSE_NAMES, FINE_NAMES, *cifar.HUMAN.values())


def read(source: SourceFiles) -> PublishedDataset | None:
    """The data set, or None where there are no such files; UnusableData if they are damaged."""
    if (files := source.find_siblings("data_batch_1.bin")) is not None:
        return _read(source, files, TEN, {DEFAULT: TEN_NAMES})
    if (files := source.find_siblings("train.bin")) is not None and FINE_NAMES in files:
        columns = {cifar.COARSE: COARSE_NAMES, DEFAULT: FINE_NAMES}  # in the order of a record
        return _read(source, files, HUNDRED, columns)
    return None


def _read(
    source: SourceFiles, files: Mapping[str, str], splits: Mapping[str, str], columns: Mapping[str, str]
) -> PublishedDataset:
    names = {column: _class_names(source, files, leaf) for column, leaf in columns.items()}
    batches = []
    for leaf, split in splits.items():
        if leaf in files:
            data = np.frombuffer(source.read(files[leaf]), np.uint8)
            record = len(columns) + cifar.PLANES
            if len(data) % record:
                raise UnusableData(f"{files[leaf]} is no whole number of {record}-byte records", code="dataset_corrupt")
            rows = data.reshape(-1, record)
            numbers = {column: rows[:, position] for position, column in enumerate(columns)}
            batches.append(cifar.check_batch(split, rows[:, len(columns) :], numbers, names, files[leaf]))
    return cifar.join_batches(batches, names, source)


def _class_names(source: SourceFiles, files: Mapping[str, str], leaf: str) -> Sequence[str]:
    if leaf not in files:
        raise UnusableData(f"{leaf}, which names the classes, is missing", code="dataset_corrupt")
    return source.read_lines(files[leaf])
