"""D1, D2: how long a job waits for its process and its first step, and how soon the API answers.

D1 is the deployed service on loopback: real Postgres (without fsync), Redis, API, a supervisor with its fork server,
and `small` on 48 pictures of 16 px, so that the training itself is next to nothing. Wall time, from the client's
request to the child's own log. D2 starts the API as an operator does, byte-compiled and with SQLite, beside a process
that only imports the frameworks, alternated.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from app.db.tables import Job
from tests import servers
from tests.benchmarks._sizes import size
from tests.worker import harness

SINGLE, IN_A_ROW = size(30, 2), size(40, 3)
STARTS = size(7, 1)
WARM_UPS = size(3, 0)
FRAMEWORKS = "import fastapi, sqlalchemy, pydantic, uvicorn"
TICKS = os.sysconf("SC_CLK_TCK")


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def line(id: str, benchmark: str, measured: float, most: float, **details: object) -> None:
    met = {"measured": measured, "target": f"<= {most:g}", "met": measured <= most}
    print(json.dumps({"id": id, "benchmark": benchmark, **met, **details}), flush=True)


# --- D1 -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_workers(port: int) -> Iterator[harness.ServiceHarness]:
    """A harness with everything a job needs but the API, for which it has the port."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        redis = stack.enter_context(servers.redis_server())
        database = stack.enter_context(servers.fresh_database(stack.enter_context(servers.postgres())))
        usual = {
            "database_grace_s": 25.0,
            "lease_s": 30.0,
            "heartbeat_s": 5.0,
            "poll_s": 1.0,
            "checkpoint_min_s": 2.0,
            "checkpoint_s": 60.0,
        }
        service = stack.enter_context(harness.opened(folder, database, redis.url, port=port, **usual))
        service.supervisor()
        yield service


@contextlib.contextmanager
def running_service() -> Iterator[tuple[harness.ServiceHarness, str]]:
    """The same with its API, and the API's URL."""
    port = servers.free_port()
    with running_workers(port) as service:
        service.start("app.main", name="api")
        url = f"http://127.0.0.1:{port}"
        servers.eventually(lambda: answers(f"{url}/livez"), seconds=60.0)
        yield service, url


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def post(url: str, dataset_id: uuid.UUID) -> uuid.UUID:
    body = {"dataset_id": str(dataset_id), "method": "ce", "network": "small", "batch_size": 16, "epochs": 1, "seed": 1}
    data = json.dumps(body | {"image_size": harness.SIDE, "precision": "f32"}).encode()
    request = urllib.request.Request(f"{url}/jobs", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return uuid.UUID(json.load(answer)["id"])


def logged_at(service: harness.ServiceHarness, job: Job, message: str) -> float:
    """When the job's child first logged a message, in seconds since the epoch."""
    for record in map(json.loads, (service.files.attempt(job.id, job.fence) / "log.jsonl").read_text().splitlines()):
        if record["message"] == message:
            return datetime.fromisoformat(record["time"]).timestamp()
    raise LookupError(message)


def starts() -> None:
    running, stepping, claimed, answered, gaps = [], [], [], [], []
    with running_service() as (service, url):
        dataset_id = service.dataset()
        for _ in range(WARM_UPS):  # the first notification imports Celery, the first child warms what children share
            service.ended(post(url, dataset_id))
        for _ in range(SINGLE):
            sent = time.time()
            job_id = post(url, dataset_id)
            answered.append(time.time() - sent)
            job = service.ended(job_id)
            assert job.started_at is not None
            claimed.append(job.started_at.timestamp() - sent)
            running.append(logged_at(service, job, "child runs") - sent)
            stepping.append(logged_at(service, job, "first step") - sent)
        queue = [post(url, dataset_id) for _ in range(IN_A_ROW)]
        done = sorted((service.ended(job_id) for job_id in queue), key=lambda job: job.started_at or job.created_at)
        for before, after in itertools.pairwise(done):
            assert before.finished_at is not None
            gaps.append(logged_at(service, after, "child runs") - before.finished_at.timestamp())
    details = {
        "p99_ms": round(percentile(running, 99) * 1000),
        "post_p50_ms": round(statistics.median(answered) * 1000, 1),
        "claimed_p50_ms": round(statistics.median(claimed) * 1000, 1),
        "jobs": SINGLE,
        "load": load(),
    }
    line("D1", "POST /jobs to its process running, p50 ms", round(statistics.median(running) * 1000, 1), 50, **details)
    first = {"p99_s": round(percentile(stepping, 99), 3), "jobs": SINGLE}
    line("D1", "POST /jobs to its first training step, p50 s", round(statistics.median(stepping), 3), 0.7, **first)
    between = {"p50_s": round(statistics.median(gaps), 3), "jobs": IN_A_ROW}
    line("D1", "gap between jobs in a row, p99 s", round(percentile(gaps, 99), 3), 1.0, **between)


def load() -> float:
    return round(os.getloadavg()[0], 1)


# --- D2 -------------------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def imported(environment: dict[str, str]) -> float:
    """CPU seconds of an interpreter that imports the frameworks and ends."""
    script = f"{FRAMEWORKS}\nimport time; print(time.process_time())"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def begun(environment: dict[str, str], port: int) -> dict[str, float]:
    """One start of the API, as an operator sees it."""
    command, started = [sys.executable, "-m", "app.main"], time.monotonic()
    process = subprocess.Popen(command, env=environment, cwd=harness.ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/livez"))
        ready_s = time.monotonic() - started
        used = cpu_seconds(process.pid)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = next(int(row.split()[1]) for row in status.splitlines() if row.startswith("VmRSS"))
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        return {"ready_s": ready_s, "cpu_s": used, "rss_mib": resident / 1024, "torch": float("torch" in maps)}
    finally:
        process.terminate()
        process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def readiness() -> None:
    with TemporaryDirectory() as folder:
        port = servers.free_port()
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("DENLL_", "PYTHONDONTWRITEBYTECODE"))}
        environment = plain | {
            "PYTHONPYCACHEPREFIX": f"{folder}/compiled",  # an installation is compiled; a working tree may not be
            "DENLL_DATA_DIR": f"{folder}/data",
            "DENLL_PORT": str(port),
        }
        begun(environment, port)  # compiles
        imported(environment)
        rounds = [(begun(environment, port), imported(environment)) for _ in range(STARTS)]
    ours: dict[str, Any] = {key: statistics.median(one[key] for one, _ in rounds) for key in rounds[0][0]}
    frameworks = statistics.median(seconds for _, seconds in rounds)
    ratio = statistics.median(one["cpu_s"] / seconds for one, seconds in rounds)
    details = {
        "best_s": round(min(one["ready_s"] for one, _ in rounds), 2),
        "cpu_s": round(ours["cpu_s"], 2),
        "frameworks_cpu_s": round(frameworks, 2),
        "cpu_over_frameworks": round(ratio, 2),
        "rss_mib": round(ours["rss_mib"]),
        "torch_loaded": bool(ours["torch"]),
        "load": load(),
    }
    line("D2", "fresh API to its first 200, median s", round(ours["ready_s"], 2), 1.0, **details)


if __name__ == "__main__":
    readiness()
    starts()
