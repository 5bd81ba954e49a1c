"""A data set in its authors' format as a zip that the service accepts: images, train.csv and test.csv.

So pickles are opened by their owner, and never by the service.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml.data.published import find_published
from ml.data.published.published_dataset import PublishedDataset
from ml.data.published.source_files import SourceFiles
from ml.errors import UnusableData
from ml.formats.container import open_container
from ml.formats.errors import DatasetFormatError

TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # so that the same data set gives the same bytes


def convert(path: Path, target: Path) -> PublishedDataset:
    """Write the zip.

    Args:
        path: A folder or an archive with the original files.
        target: The zip to write.

    Returns:
        What was converted. Its images can no longer be read.

    Raises:
        UnusableData: no_layout where there is none of the formats; what is damaged; and the codes of
            `container.open_container`.
    """
    try:
        container = open_container(path)
        with container.reader() as read:
            dataset = find_published(SourceFiles(container.entries, read))
            if dataset is None:
                raise UnusableData(
                    f"{path.name} holds none of the formats CIFAR-10, CIFAR-100 and Clothing1M",
                    hint="class folders and images with a table need no conversion",
                    code="no_layout",
                )
            _write_zip(dataset, target)
    except DatasetFormatError as error:
        raise UnusableData.from_format_error(error, path) from error
    return dataset


def _write_zip(dataset: PublishedDataset, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for split in ("train", "test"):
            rows = [number for number, name in enumerate(dataset.splits) if name == split]
            columns = [name for name, labels in dataset.labels.items() if any(labels[number] for number in rows)]
            lines = ((dataset.names[row], *(dataset.labels[name][row] for name in columns)) for row in rows)
            if rows:
                archive.writestr(_entry(f"{split}.csv"), _table(["file", *columns], lines))
        for number, name in enumerate(dataset.names):
            archive.writestr(_entry(name), dataset.encoded(number))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, TIMESTAMP)
    entry.external_attr = 0o644 << 16
    return entry


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()
