"""Reads the results of a job: epoch reports as columns, log lines, artifacts."""

from __future__ import annotations

import itertools
import json
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

from app.errors import ArtifactNotFound
from app.storage import EXPORT, DownloadableFile, Storage


def to_columns(reports: list[tuple[int, dict[str, Any]]], max_points: int) -> tuple[list[int], dict[str, list[Any]]]:
    """Epoch reports as columns: the epoch numbers, and a list of equal length for each series.

    Nested scores get dotted names: `{"test": {"answer": {"accuracy": 0.9}}}` is the series `test.answer.accuracy`.

    Args:
        reports: Epoch number and report of each epoch, in order.
        max_points: The most epochs to return, evenly spaced. The first and the last are among them; for 1, the last.
    """
    selected = [reports[n] for n in space_evenly(len(reports), max_points)]
    flat = [dict(flatten(report)) for _, report in selected]
    names = list(dict.fromkeys(itertools.chain.from_iterable(flat)))
    return [number for number, _ in selected], {name: [row.get(name) for row in flat] for name in names}


def space_evenly(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced indexes below `count`, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(n * (count - 1) / (most - 1)) for n in range(most)] if most > 1 else [count - 1]


def flatten(report: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Numbers of a report with their dotted names, after `prefix`; everything else in it is left out."""
    for name, value in report.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield prefix + name, value


def log_lines(storage: Storage, job_id: uuid.UUID, attempt: int | None, last: int) -> Iterator[str]:
    """The last lines of the logs, oldest first, each a JSON object.

    Args:
        attempt: The fence of the attempt whose log is read; None for those of all attempts.
        last: The most lines.
    """
    lines: deque[str] = deque(maxlen=last)
    for fence, path in storage.log_files(job_id).items():
        if attempt in (None, fence) and path.is_file():
            with path.open(encoding="utf-8", errors="replace") as file:
                lines.extend(line.rstrip("\n") for line in file if line.strip())
    yield from lines


def format_log_line(line: str) -> str:
    """A log line as text; a line that is not JSON (a process was killed while it wrote) is returned unchanged."""
    try:
        record = json.loads(line)
        return f"{record['time']} {record['level']:<7} {record['message']}"
    except (ValueError, KeyError, TypeError):
        return line


def artifacts(storage: Storage, job_id: uuid.UUID, model_id: uuid.UUID | None) -> dict[str, DownloadableFile]:
    """Files to download, by name: artifacts of the newest attempt that has any, and the exported model."""
    artifacts: dict[str, DownloadableFile] = {}
    if model_id is not None and (file := storage.find_model_file(model_id, EXPORT)) is not None:
        artifacts[EXPORT] = file
    return dict(sorted((artifacts | storage.artifacts(job_id)).items()))


def artifact(artifacts: dict[str, DownloadableFile], name: str) -> DownloadableFile:
    """The artifact of this name among `artifacts`; ArtifactNotFound. A name that is not listed opens no file."""
    if name not in artifacts:
        raise ArtifactNotFound("This job has no such artifact; GET /jobs/{id}/artifacts lists them.")
    return artifacts[name]
