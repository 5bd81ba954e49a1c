"""Parquet shards, in which Hugging Face publishes images: which files of a container they are, and their splits.

Their content is read by `ml.data.parquet_shards`, in a process with limits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ml.formats.entries import Entry, is_shard
from ml.formats.layout import IMAGE_SUFFIXES
from ml.formats.records import SPLITS

_named_split = re.compile(rf"(?:.*[^a-z])?({'|'.join(SPLITS)})(?:[^a-z].*)?").fullmatch


def find_shards(entries: Sequence[Entry]) -> list[Entry]:
    """The shards of a container that holds no other images, by path."""
    shards = [entry for entry in entries if is_shard(entry.path)]
    if shards and any(entry.path.rpartition(".")[2].lower() in IMAGE_SUFFIXES for entry in entries):
        return []
    return sorted(shards)


def split_of(path: str) -> str:
    """The split that the name of a shard says (`train-00000-of-00002.parquet`), else its folder; train for none."""
    *_, folder, name = ("", *path.lower().split("/"))
    match = _named_split(name.removesuffix(".parquet"))
    return SPLITS[match[1]] if match else SPLITS.get(folder, "train")
