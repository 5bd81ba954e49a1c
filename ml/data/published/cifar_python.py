"""CIFAR-10 and CIFAR-100 as pickles, their "python version": data_batch_1 to 5, test_batch and batches.meta, or train,
test and meta. The pickles are read by an allow-list (`pickles`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml.data.published import cifar, pickles
from ml.data.published.published_dataset import DEFAULT, PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.errors import UnusableData

TEN = {**{f"data_batch_{number}": "train" for number in range(1, 6)}, "test_batch": "test"}
HUNDRED = {"train": "train", "test": "test"}
TEN_META, META = "batches.meta", "meta"
LABEL_FILES = (*TEN, *HUNDRED, TEN_META, META, *cifar.HUMAN.values())


def read(source: SourceFiles) -> PublishedDataset | None:
    """The data set, or None where there are no such files; UnusableData if they are damaged."""
    if (files := source.find_siblings(TEN_META)) is not None and "data_batch_1" in files:
        return _read(source, files, TEN, files[TEN_META], {DEFAULT: ("label_names", "labels")})
    if (files := source.find_siblings(META)) is not None and "train" in files:
        keys = {DEFAULT: ("fine_label_names", "fine_labels"), cifar.COARSE: ("coarse_label_names", "coarse_labels")}
        return _read(source, files, HUNDRED, files[META], keys)
    return None


def _read(
    source: SourceFiles,
    files: Mapping[str, str],
    splits: Mapping[str, str],
    meta: str,
    keys: Mapping[str, tuple[str, str]],
) -> PublishedDataset:
    """`keys`: for each column, where the names of its classes are, and where its numbers."""
    known = pickles.read(source.read(meta), meta)
    names = {column: [_text(name) for name in _entry(known, of, meta)] for column, (of, _) in keys.items()}
    batches = []
    for leaf, split in splits.items():
        if leaf in files:
            held = pickles.read(source.read(files[leaf]), files[leaf])
            numbers = {column: _entry(held, key, files[leaf]) for column, (_, key) in keys.items()}
            batches.append(cifar.check_batch(split, _entry(held, "data", files[leaf]), numbers, names, files[leaf]))
    return cifar.join_batches(batches, names, source)


def _entry(held: Mapping[str, Any], key: str, file: str) -> Any:
    if key not in held:
        raise UnusableData(f"{file} has no entry {key!r}", code="dataset_corrupt")
    return held[key]


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)
