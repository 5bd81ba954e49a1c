"""Result files: one JSON file a run, named by what determines it, there whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml import errors, fsync
from ml.study.plan import Run, key
from ml.study.sources import DataPaths

CODE = Path(__file__).parents[1]  # the package that trains
MEASURING = {"sources", "run"}  # what of the study's own code a result depends on


class Task(NamedTuple):
    """A run, where its pictures lie and what tells them from others, and the file that its result becomes."""

    run: Run
    data: DataPaths
    fingerprint: str
    target: Path


def task(run: Run, data: DataPaths, fingerprint: str, out: Path) -> Task:
    """The task whose result in `out` is named by run and data."""
    name = hashlib.sha256(f"{run.key}\n{fingerprint}".encode()).hexdigest()[:24]
    return Task(run, data, fingerprint, out / f"{name}.json")


def write(task: Task, found: dict[str, Any]) -> None:
    """The result file, by rename."""
    whole = found | {"fingerprint": task.fingerprint, "code": code()}
    partial = task.target.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(whole, allow_nan=False), encoding="utf-8")
    fsync.flush(partial)
    partial.replace(task.target)


def read(out: Path) -> Iterator[dict[str, Any]]:
    """Every result in a folder, in the order of their names; UnusableData where a file is damaged."""
    for path in sorted(out.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            hint = "without it the study computes it again"
            raise errors.UnusableData(f"{path} is damaged: {error}", hint=hint, code="damaged_result") from error
        if isinstance(found, dict) and {"spec", "data", "heads", "fingerprint"} <= found.keys():
            yield found


def chosen(found: Iterable[dict[str, Any]], wanted: Mapping[str, str | None]) -> tuple[list[dict[str, Any]], int]:
    """The results of these runs, by key, and of data with these fingerprints; and how many are of other data.

    Without a fingerprint (None: the data are not at hand) all results of one data set must be of the same data, or
    they cannot stand in one table: UnusableData (mixed_data).
    """
    of_runs = [each for each in found if key(each) in wanted]
    kept = [each for each in of_runs if wanted[key(each)] in (None, each["fingerprint"])]
    for name in sorted({each["data"]["name"] for each in kept if wanted[key(each)] is None}):
        counts = Counter(each["fingerprint"][:12] for each in kept if each["data"]["name"] == name)
        if len(counts) > 1:
            told = ", ".join(f"{count} of {fingerprint}" for fingerprint, count in sorted(counts.items()))
            detail = f"the results are of {len(counts)} different data sets called {name!r}: {told}"
            raise errors.UnusableData(detail, hint=f"say which to show with --data {name}=PATH", code="mixed_data")
    return kept, len(of_runs) - len(kept)


@functools.cache
def code() -> str:
    """Which version of `ml` computed a result, as the start of a digest of its sources."""
    digest = hashlib.sha256()
    for path in sorted(CODE.rglob("*.py")):
        if path.parent != Path(__file__).parent or path.stem in MEASURING:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
