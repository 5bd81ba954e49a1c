"""One archive to one ready data set: every picture decoded and checked, the index written, the pixels packed.

Takes the container and the list of its labelled pictures, and extracts nothing to files. How an archive or a table is
read, who asked and what a row in a database says about it is not known here. Free of torch.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import sqlite3
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ml.data import image_headers, pixel_file
from ml.data.clutter import clutter
from ml.data.decoding import Resize
from ml.data.pixel_file import Item, Outcome, PixelFile, Progress
from ml.errors import UndecodableImage, UnusableData

SAMPLE = 1000  # pictures whose headers suggest the image size
NATIVE_SIDES = range(16, 65)  # uniform squares of these sides are kept as they are
BUCKETS = (32, 64, 96, 128)  # larger inputs (160, 224) are chosen by hand: they cost more than they usually gain

SCHEMA = """
CREATE TABLE image ("index" INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, split TEXT NOT NULL, given INTEGER,
  clean INTEGER, width INTEGER NOT NULL, height INTEGER NOT NULL, offset INTEGER NOT NULL,
  stored_bytes INTEGER NOT NULL, deflated INTEGER NOT NULL, image_bytes INTEGER NOT NULL, sha256 TEXT NOT NULL,
  format TEXT NOT NULL);
CREATE TABLE class ("index" INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE report (path TEXT NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL, level TEXT NOT NULL);
CREATE TABLE fact (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class ImageRecord(Item, Protocol):
    """A picture with its split ('train', 'test') and class ids: the given label, and the clean one where known."""

    @property
    def split(self) -> str: ...
    @property
    def given(self) -> int | None: ...
    @property
    def clean(self) -> int | None: ...


class Finding(NamedTuple):
    """A line of the report. `level` is excluded (a picture left out), warning, or ignored (not a picture)."""

    path: str
    code: str
    detail: str
    level: str


def ingest(
    container: Path,
    items: Iterable[ImageRecord],
    classes: Sequence[str],
    folder: Path,
    *,
    findings: Iterable[tuple[str, str, str, str]] = (),
    facts: Mapping[str, object] | None = None,
    image_size: int | None = None,
    resize: Resize = "squash",
    threads: int = 1,
    bad_fraction: float = 0.10,
    progress: Progress = pixel_file.quiet,
) -> dict[str, object]:
    """Write index.sqlite and pixels-<S>-<resize>.npy into `folder` and return the facts.

    Train pictures come first, each split in order of path, so the index does not depend on how a set was packed.
    Raises UnusableData (too_many_bad_images, too_few_classes, no_images, archive_too_large).
    """
    ordered = sorted(items, key=lambda item: (item.split != "train", item.path))
    size = image_size or _suggested_size(container, ordered)
    with PixelFile(pixel_file.path(folder, size, resize), size) as file:
        outcomes = pixel_file.decode_all(container, ordered, file, resize=resize, threads=threads, progress=progress)
        report = [Finding(i.path, *o.fault, "excluded") for i, o in zip(ordered, outcomes, strict=True) if o.fault]
        kept = [(i, o) for i, o in zip(ordered, outcomes, strict=True) if o.fault is None]
        _require_usable(len(ordered), [item for item, _ in kept], report, bad_fraction)
    trained = sum(item.split == "train" for item, _ in kept)
    squares = np.load(pixel_file.path(folder, size, resize), mmap_mode="r", allow_pickle=False)
    report += [Finding(*finding) for finding in findings]
    report += _copies(kept, classes)
    report += _small_classes([item for item, _ in kept], classes)
    found = {**(facts or {}), **_facts(kept, classes, report), "image_size": size, "resize": resize}
    found["clutter"] = round(clutter(squares[:trained]), 4)
    _write_index(folder / "index.sqlite", kept, classes, report, found)
    return found


def _suggested_size(container: Path, items: Sequence[Item]) -> int:
    sizes = []
    with pixel_file.mapped(container) as view:
        for item in items[:: max(1, len(items) // SAMPLE)]:
            try:
                found = image_headers.header(pixel_file.read(view, item))
            except UndecodableImage:
                continue
            sizes.append((found.width, found.height))
    if not sizes:
        return BUCKETS[0]
    width, height = sizes[0]
    if width == height and width in NATIVE_SIDES and len(set(sizes)) == 1:
        return width
    side = statistics.median((width * height) ** 0.5 for width, height in sizes)
    return next((bucket for bucket in BUCKETS if bucket >= side), BUCKETS[-1])


def _require_usable(total: int, kept: Sequence[ImageRecord], report: Sequence[Finding], bad_fraction: float) -> None:
    bad = total - len(kept)
    if bad > bad_fraction * total:
        worst = report[0]
        raise UnusableData(
            f"{bad} of {total} images cannot be read, for example {worst.path[:150]}: {worst.detail}",
            hint=f"at most {bad_fraction:.0%} may be bad; repair or remove them",
            code="too_many_bad_images",
        )
    if not any(item.split == "train" for item in kept):
        raise UnusableData("there are no training images", code="no_images")
    if len({item.given for item in kept if item.split == "train"}) < 2:
        raise UnusableData("only one class has training images; two are needed", code="too_few_classes")


def _copies(kept: Sequence[tuple[ImageRecord, Outcome]], classes: Sequence[str]) -> list[Finding]:
    """Byte-identical pictures: under two labels, across the splits, or merely repeated."""
    first: dict[str, ImageRecord] = {}
    found = []
    for item, outcome in kept:
        original = first.setdefault(outcome.sha256, item)
        if original is item:
            continue
        same = f"the same bytes as {original.path}"
        if original.split != item.split:
            found.append(Finding(item.path, "train_test_leakage", f"{same}, which is in {original.split}", "warning"))
        else:
            found.append(Finding(item.path, "duplicate_image", same, "warning"))
        if None not in (original.given, item.given) and original.given != item.given:
            labels = f"{_name(classes, original.given)!r} and {_name(classes, item.given)!r}"
            found.append(Finding(item.path, "same_image_two_labels", f"{same}, labelled {labels}", "warning"))
    return found


def _small_classes(kept: Sequence[ImageRecord], classes: Sequence[str]) -> list[Finding]:
    counts = collections.Counter(item.given for item in kept if item.split == "train")
    found = []
    for index, name in enumerate(classes):
        if counts[index] == 0:
            found.append(Finding(name, "empty_class", "the class has no training images", "warning"))
        elif counts[index] == 1:
            found.append(Finding(name, "class_of_one", "the class has a single training image", "warning"))
    return found


def _name(classes: Sequence[str], index: int | None) -> str | None:
    return None if index is None else classes[index]


def _facts(
    kept: Sequence[tuple[ImageRecord, Outcome]], classes: Sequence[str], report: Sequence[Finding]
) -> dict[str, object]:
    """Counts, sizes and the digest: sha256 over path, split, content and labels of every image, in order."""
    pairs = {(item.given, item.clean) for item, _ in kept}
    named = {pair: repr((_name(classes, pair[0]), _name(classes, pair[1]))) for pair in pairs}
    digest = hashlib.sha256()
    for item, outcome in kept:
        labels = named[item.given, item.clean]
        digest.update(f"{item.path!r} {item.split} {outcome.sha256} {labels}\n".encode())
    train = [item for item, _ in kept if item.split == "train"]
    known = [item for item in train if item.clean is not None]
    wrong = sum(item.given != item.clean for item in known)
    levels = collections.Counter(finding.level for finding in report)
    return {
        "digest": f"sha256:{digest.hexdigest()}",
        "classes": len(classes),
        "train_images": len(train),
        "test_images": len(kept) - len(train),
        "image_bytes": sum(item.image_bytes for item, _ in kept),
        "median_width": statistics.median_low(outcome.width for _, outcome in kept),
        "median_height": statistics.median_low(outcome.height for _, outcome in kept),
        "formats": dict(collections.Counter(outcome.format for _, outcome in kept)),
        "excluded": levels["excluded"],
        "warnings": levels["warning"],
        "ignored": levels["ignored"],
        "known_clean": len(known),
        "noise_rate": wrong / len(known) if known else None,
    }


def _place(item: Item) -> tuple[int, int, int, int]:
    return item.offset, item.stored_bytes, int(item.deflated), item.image_bytes


def _write_index(
    target: Path,
    kept: Sequence[tuple[ImageRecord, Outcome]],
    classes: Sequence[str],
    report: Sequence[Finding],
    facts: Mapping[str, object],
) -> None:
    database = sqlite3.connect(target, isolation_level=None)
    try:
        database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;" + SCHEMA)
        database.execute("BEGIN")
        database.executemany(
            "INSERT INTO image VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                (n, i.path, i.split, i.given, i.clean, o.width, o.height, *_place(i), o.sha256, o.format)
                for n, (i, o) in enumerate(kept)
            ),
        )
        database.executemany("INSERT INTO class VALUES (?,?)", enumerate(classes))
        database.executemany("INSERT INTO report VALUES (?,?,?,?)", report)
        database.executemany("INSERT INTO fact VALUES (?,?)", ((k, json.dumps(v)) for k, v in facts.items()))
        database.execute("COMMIT")
    finally:
        database.close()
    target.chmod(0o640)
    with target.open("rb") as file:
        os.fsync(file.fileno())
