"""Writes the artifacts of a job, the files that its user downloads, and the manifest that lists them."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from app import local_files
from app.storage import ARTIFACTS, Storage
from ml.evaluation.masks import Gaussian
from ml.formats import csv_cells, fsync

MANIFEST = "manifest.json"
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}


@contextlib.contextmanager
def replace_folder(files: Storage, attempt: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends without an error, it becomes the attempt's artifacts.

    Until then a reader sees the earlier artifacts, or none.

    Args:
        files: Where they are published.
        attempt: Folder of the attempt.
    """
    target, temporary = attempt / ARTIFACTS, attempt / f".{ARTIFACTS}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    write_manifest(temporary)
    files.stage(temporary, target).publish()


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in UTF-8, with `header` as its first row; no cell is a formula for a spreadsheet."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([csv_cells.escape(value) for value in row] for row in rows)


def gaussian_cells(gaussian: Gaussian) -> list[str]:
    """The cells of a Gaussian in the order of `csv_cells.GAUSSIAN_COLUMNS`, to a hundredth of a pixel."""
    return [f"{value:.2f}" for value in (gaussian.cx, gaussian.cy, gaussian.sigma_x, gaussian.sigma_y)]


def write_manifest(folder: Path) -> None:
    """Write the manifest of a folder: name, size, SHA-256 and media type of each file."""
    entries = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": fsync.hash_file(path).sha256,
            "media_type": MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        }
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    ]
    local_files.write_atomic(folder / MANIFEST, json.dumps({"artifacts": entries}, indent=1).encode())
