"""P1: seconds from `POST /jobs` to the first answer, of the first job on a data set of photographs and of a second one.

`python -m tests.benchmarks.first_answer DATA` reads `imagenette` (2,000 of its photographs, labels `noise25`, and its
test set) from the folder DATA (or DENLL_DATA), and uploads it to a service as `make run` starts it. Jobs are the
default ones: they name the data set alone. The first has everything to encode; of the second, features are cached. The
second is the median of `REPEATS`; every job is cancelled once it has answered. Wall time of a client that looks 20
times a second.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from ml.networks import weights
from tests import servers
from tests.benchmarks._sizes import SMALLEST, arguments, size
from tests.benchmarks.jobs import answers, line, load
from tests.benchmarks.photographs import NETWORK, generate, read_table
from tests.worker import harness

FIRST_S, SECOND_S = 30.0, 5.0  # targets
REPEATS = size(5, 1)
LOOK_S = 0.05
PATIENCE_S = 600.0
HEADER = ("file", "split", "label")
FINISHED = ("succeeded", "failed", "cancelled")


def write_archive(archive: Path, data: Path | None, scratch: Path) -> None:
    """The data set as a zip with a table; of noise where no photographs are named."""
    pictures = generate(scratch) if data is None else read_table(data)
    splits = {
        "train": (pictures.files, pictures.given_labels),
        "test": (pictures.test_files, pictures.test_clean),
    }
    table = scratch / "labels.csv"
    with zipfile.ZipFile(archive, "w") as packed, table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for split, (files, labels) in splits.items():
            for number, (path, label) in enumerate(zip(files, labels.tolist(), strict=True)):
                name = f"{split}/{number:05}{path.suffix}"
                packed.write(path, name)
                writer.writerow([name, split, pictures.classes[label]])
        file.flush()
        packed.write(table, "labels.csv")


def await_that(condition: Callable[[], Any]) -> Any:
    """The first truthy value of `condition`, looked for 20 times a second."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_S:.0f} s")
        time.sleep(LOOK_S)
    return value


def first_answer(api: httpx2.Client, dataset_id: str) -> tuple[float, dict[str, Any]]:
    """Seconds until a default job has answered, and what it says; then it is cancelled."""
    started = time.monotonic()
    job = f"/jobs/{api.post('/jobs', json={'dataset_id': dataset_id}).raise_for_status().json()['id']}"

    def read_stages() -> list[dict[str, Any]]:
        document = api.get(job).json()
        stages: list[dict[str, Any]] = (document["metrics"] or {}).get("stages", [])
        if not stages and document["status"] in FINISHED:
            raise RuntimeError(f"the job ended without an answer: {document['error']}")
        return stages

    stage: dict[str, Any] = await_that(read_stages)[0]
    seconds = time.monotonic() - started
    api.post(f"{job}/cancel")
    await_that(lambda: api.get(job).json()["status"] in FINISHED)
    return seconds, stage


def measure(api: httpx2.Client, archive: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """The answers of the first job and of `REPEATS` more."""
    with archive.open("rb") as file:
        sent = api.post("/datasets", files={"file": (archive.name, file, "application/zip")}).raise_for_status()
    dataset_id = sent.json()["id"]
    await_that(lambda: api.get(f"/datasets/{dataset_id}").json()["status"] == "ready")
    for _ in range(1 + REPEATS):
        yield first_answer(api, dataset_id)


def report(measured: Sequence[tuple[float, dict[str, Any]]]) -> None:
    (first, stage), *others = measured
    seconds = sorted(elapsed for elapsed, _ in others)
    facts = {name: stage[name] for name in ("test_accuracy", "estimated_noise_rate")}
    line("P1", "POST /jobs to its first answer, features to compute, s", round(first, 1), FIRST_S, **facts, load=load())
    details = {"best_s": round(seconds[0], 2), "worst_s": round(seconds[-1], 2), "jobs": REPEATS, "load": load()}
    line("P1", "the same with cached features, p50 s", round(statistics.median(seconds), 2), SECOND_S, **details)


def run(root: Path, data: Path | None) -> None:
    archive, port = root / "photographs.zip", servers.free_port()
    write_archive(archive, data, root)
    weights.add(root / "data" / "weights", NETWORK)
    own = {name: value for name, value in os.environ.items() if not name.startswith("DENLL_")}
    environment = own | {"DENLL_DATA_DIR": str(root / "data"), "DENLL_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "worker.embedded"]
    with (
        servers.running(command, lambda: answers(f"{url}/livez"), env=environment, cwd=harness.ROOT),
        httpx2.Client(base_url=url, timeout=60) as api,
    ):
        await_that(lambda: answers(f"{url}/readyz"))
        report(list(measure(api, archive)))


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        named = (arguments() or [os.environ.get("DENLL_DATA", "")])[0]
        if named or SMALLEST:
            run(Path(temporary), None if SMALLEST else Path(named))
        else:
            why = {"measured": None, "met": None, "why": "needs DENLL_DATA, a folder with imagenette"}
            print(json.dumps({"id": "P1", "benchmark": "first answer", "target": "<= 30", **why}), flush=True)
