"""Twenty short jobs and predictions without pause, while a random process is killed every fifteen seconds.

Not killed are the launcher, which is what restarts the others, the API, whose `/livez` must never fail, and the
database. What must hold: each job ends once, with one model; nothing is left behind; less than one prediction in a
hundred fails, each with a problem document that says when to try again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from tests.endurance.service import Client, Service, live, predict
from tests.servers import eventually

SPARED = ("app.main",)
KILL_EVERY_S = 15.0
FAILED_PREDICTIONS = 0.01
LAST_JOB_S = 300.0


def run(service: Service, *, minutes: float, jobs: int, seed: int = 0) -> dict[str, object]:
    """Kill for some minutes; the figures, once everything that must hold was checked."""
    dataset = service.dataset()
    assert service.finished(service.submit(dataset, epochs=1), 120.0)["status"] == "succeeded"
    submitted = [service.submit(dataset, epochs=40, seed=number) for number in range(jobs)]
    predictions = [Client(service.url, predict, 0.05) for _ in range(2)]
    beats = Client(service.url, live, 0.25)
    for client in (*predictions, beats):
        client.start()

    killed = kill_at_random(service, time.monotonic() + 60.0 * minutes, random.Random(seed))
    ended = [service.finished(job, LAST_JOB_S) for job in submitted]
    outcomes = [outcome for client in predictions for outcome in client.end()]
    failed = [outcome for outcome in outcomes if outcome.status != 200]
    figures = {
        "killed": dict(killed),
        "jobs": dict(Counter(job["status"] for job in ended)),
        "predictions": len(outcomes),
        "failed_predictions": dict(Counter(outcome.status for outcome in failed)),
        "longest_prediction_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "livez": dict(Counter(outcome.status for outcome in beats.end())),
    }

    assert figures["jobs"] == {"succeeded": jobs}, figures
    for job in submitted:
        assert count_done(service, job) == 1, job
    models = [model["job_id"] for model in all_items(service, "/models")]
    assert {job: models.count(job) for job in submitted} == dict.fromkeys(submitted, 1), figures
    assert set(figures["livez"]) == {200}, figures  # type: ignore[call-overload]
    assert len(failed) < FAILED_PREDICTIONS * len(outcomes), figures
    assert all(outcome.is_honest for outcome in failed), figures
    eventually(lambda: not zombies(service), seconds=10.0, what=f"zombies reaped: {zombies(service)}")
    eventually(lambda: not temporary_files(service.data), seconds=10.0, what="temporary files deleted")
    return figures


def kill_at_random(service: Service, until: float, chance: random.Random) -> Counter[str]:
    """Kill one descendant of the launcher after another; how many of each kind."""
    killed: Counter[str] = Counter()
    while time.monotonic() < until:
        time.sleep(min(KILL_EVERY_S, max(0.0, until - time.monotonic())))
        candidates = {pid: name for pid, name in service.descendants().items() if not any(s in name for s in SPARED)}
        pid = chance.choice(sorted(candidates))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed[kind(candidates[pid])] += 1
    return killed


def kind(command: str) -> str:
    """The module that a process runs, or its program."""
    words = command.split()
    return words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name


def count_done(service: Service, job: str) -> int:
    return service.client.get(f"/jobs/{job}/events").text.splitlines().count("event: done")


def all_items(service: Service, path: str) -> list[dict[str, str]]:
    items: list[dict[str, str]] = service.ask("GET", f"{path}?limit=200")["items"]
    return items


def zombies(service: Service) -> list[str]:
    """Descendants that have ended and were not reaped."""
    ours = {service.process.pid, *service.descendants()}
    ended = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state == "Z" and int(parent) in ours:
            ended.append(f"{stat.parent.name} of {parent}")
    return ended


def temporary_files(data: Path) -> list[Path]:
    """Files of attempts that nobody will finish; those of killed attempts go with their job's other checkpoints."""
    return [path for path in (data / "models").rglob("*") if ".tmp" in path.name]
