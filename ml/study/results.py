"""Result files: one JSON file a run, named by what determines it, there whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ml import durable
from ml.study.plan import Run

CODE = Path(__file__).parents[1]  # the package that trains


class Task(NamedTuple):
    """A run, where its pictures lie and what tells them from others, and the file that its result becomes."""

    run: Run
    data: Path | None
    fingerprint: str
    target: Path


def task(run: Run, data: Path | None, fingerprint: str, out: Path) -> Task:
    """The task whose result in `out` is named by run and data."""
    name = hashlib.sha256(f"{run.key}\n{fingerprint}".encode()).hexdigest()[:24]
    return Task(run, data, fingerprint, out / f"{name}.json")


def write(task: Task, found: dict[str, Any]) -> None:
    """The result file, by rename."""
    whole = found | {"fingerprint": task.fingerprint, "code": code()}
    partial = task.target.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(whole, allow_nan=False), encoding="utf-8")
    durable.flush(partial)
    partial.replace(task.target)


def read(out: Path) -> Iterator[dict[str, Any]]:
    """Every result in a folder, in the order of their names."""
    for path in sorted(out.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"spec", "data", "heads"} <= found.keys():
            yield found


@functools.cache
def code() -> str:
    """Which version of `ml` computed a result, as the start of a digest of its sources."""
    digest = hashlib.sha256()
    for path in sorted(CODE.rglob("*.py")):
        if path.parent != Path(__file__).parent:  # the study's own code changes no result
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
