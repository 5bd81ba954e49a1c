"""A set in its authors' format as a zip that the service takes: pictures, train.csv and test.csv.

So pickles are opened where their owner is, and never by the service.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml import layouts
from ml.errors import UnusableData
from ml.layouts import source
from ml.layouts.pictures import Pictures

STAMP = (1980, 1, 1, 0, 0, 0)  # the same set is the same bytes


def convert(folder: Path, target: Path) -> Pictures:
    """Write the zip; UnusableData if the folder (or zip) holds none of the formats."""
    found = layouts.find(source.opened(folder))
    if found is None:
        raise UnusableData(
            f"{folder.name} holds none of the formats CIFAR-10, CIFAR-100 and Clothing1M",
            hint="class folders and pictures with a CSV need no conversion",
            code="no_layout",
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for split in ("train", "test"):
            rows = [number for number, each in enumerate(found.splits) if each == split]
            columns = [c for c, values in found.labels.items() if any(values[number] for number in rows)]
            lines = ((found.names[number], *(found.labels[c][number] for c in columns)) for number in rows)
            if rows:
                archive.writestr(_entry(f"{split}.csv"), _table(["file", *columns], lines))
        for number, name in enumerate(found.names):
            archive.writestr(_entry(name), found.encoded(number))
    return found


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, STAMP)
    entry.external_attr = 0o644 << 16
    return entry


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
