"""Files a job leaves for its user, and the manifest that lists them. Knows no training."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from app import storage
from ml.evaluation.masks import Gaussian

FOLDER, MANIFEST = "artifacts", "manifest.json"
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that starts so (C3)
GAUSSIAN = ("cx", "cy", "sigma_x", "sigma_y")


@contextlib.contextmanager
def complete(attempt: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes the attempt's artifacts, with their manifest, when all of it is there.

    Whoever looks for artifacts meanwhile finds those of before, or none.
    """
    target, unseen = attempt / FOLDER, attempt / f".{FOLDER}"
    shutil.rmtree(unseen, ignore_errors=True)
    unseen.mkdir(parents=True)
    yield unseen
    write_manifest(unseen)
    storage.remove(target)
    storage.publish(unseen, target)


def table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV in UTF-8 in which no text is taken for a formula."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)


def place(gaussian: Gaussian) -> list[str]:
    """The cells of a Gaussian, to a hundredth of a pixel."""
    return [f"{value:.2f}" for value in (gaussian.cx, gaussian.cy, gaussian.sigma_x, gaussian.sigma_y)]


def write_manifest(folder: Path) -> None:
    """List an attempt's artifacts: name, size, SHA-256 and media type of each."""
    listed = [
        {
            "name": path.name,
            "bytes": path.stat().st_size,
            "sha256": storage.sha256_file(path),
            "media_type": MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
        }
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST
    ]
    storage.write_atomic(folder / MANIFEST, json.dumps({"artifacts": listed}, indent=1).encode())


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) and not _number(value) else value


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
