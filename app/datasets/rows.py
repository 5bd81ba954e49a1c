"""The words of a layout: an image with its labels as text, a line of the report, and the ways to refuse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, NoReturn

from app.datasets.entries import Entry
from app.errors import ArchiveRejected, shown

SPLITS: dict[str, str] = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip


class Finding(NamedTuple):
    """A line of the report: level is excluded, warning or ignored."""

    path: str
    code: str
    detail: str
    level: Literal["excluded", "warning", "ignored"]


class Row(NamedTuple):
    """An image and its labels as text."""

    entry: Entry
    split: str
    given: str | None
    clean: str | None


def listed(names: Iterable[str]) -> str:
    """Names as a sentence may carry them."""
    items = sorted(names) if isinstance(names, set) else list(names)
    return ", ".join(shown(item, 60) for item in items[:20]) + (" ..." if len(items) > 20 else "")


def reject(code: str, detail: str, entry: str | None = None) -> NoReturn:
    raise ArchiveRejected(detail, code=code, entry=entry)
