"""Result files of a study: one JSON file a run, named by what determines it, complete or absent."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml import errors
from ml.formats import fsync
from ml.study.plan import Run, key
from ml.study.sources import DataPaths

CODE = Path(__file__).parents[1]  # the package that trains
MEASURING = {"sources", "run"}  # the modules of this package that a result depends on


class Task(NamedTuple):
    """A run, where its images are, their fingerprint, and the file of its result."""

    run: Run
    data: DataPaths
    fingerprint: str
    target: Path


def make_task(run: Run, data: DataPaths, fingerprint: str, out: Path) -> Task:
    """The task of a run; its file in the folder `out` is named by the run and the data's fingerprint."""
    name = hashlib.sha256(f"{run.key}\n{fingerprint}".encode()).hexdigest()[:24]
    return Task(run, data, fingerprint, out / f"{name}.json")


def write(task: Task, result: dict[str, Any]) -> None:
    """Write the result file, by rename."""
    complete = result | {"fingerprint": task.fingerprint, "code": code_version()}
    partial = task.target.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(complete, allow_nan=False), encoding="utf-8")
    fsync.flush(partial)
    partial.replace(task.target)


def read(out: Path) -> Iterator[dict[str, Any]]:
    """Every result in a folder, in the order of file names; UnusableData where a file is damaged."""
    for path in sorted(out.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            hint = "delete it, and the study computes it again"
            raise errors.UnusableData(f"{path} is damaged: {error}", hint=hint, code="damaged_result") from error
        if isinstance(content, dict) and {"spec", "data", "heads", "fingerprint"} <= content.keys():
            yield content


def select(
    results: Iterable[dict[str, Any]], fingerprints: Mapping[str, str | None]
) -> tuple[list[dict[str, Any]], int]:
    """The results that belong in a table.

    Args:
        results: As `read` yields them.
        fingerprints: For the key of each of the table's runs the fingerprint of its data; None where the data are not
            there to be fingerprinted.

    Returns:
        The results of these runs and data, and the number of results of these runs and other data.

    Raises:
        UnusableData: Without a fingerprint, results are of different data sets of one name (code mixed_data).
    """
    of_runs = [result for result in results if key(result) in fingerprints]
    selected = [result for result in of_runs if fingerprints[key(result)] in (None, result["fingerprint"])]
    for name in sorted({result["data"]["name"] for result in selected if fingerprints[key(result)] is None}):
        counts = Counter(result["fingerprint"][:12] for result in selected if result["data"]["name"] == name)
        if len(counts) > 1:
            listed = ", ".join(f"{count} of {fingerprint}" for fingerprint, count in sorted(counts.items()))
            detail = f"the results are of {len(counts)} different data sets called {name!r}: {listed}"
            raise errors.UnusableData(detail, hint=f"choose one with --data {name}=PATH", code="mixed_data")
    return selected, len(of_runs) - len(selected)


@functools.cache
def code_version() -> str:
    """The version of `ml` that computes results: the first digits of a digest of its source files."""
    digest = hashlib.sha256()
    for path in sorted(CODE.rglob("*.py")):
        if path.parent != Path(__file__).parent or path.stem in MEASURING:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
