"""Sixty-four clients beside a training: no server error but an honest 503, and memory that stays flat."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx

from tests.endurance.service import PICTURE, Client, Service, live, predict

CLIENTS = 64
PAUSE_S = 0.2
WARM_UP = 0.2  # of the time: pools fill, caches load
GROWTH = 1.2  # how much more memory the service may hold at the end
FLOOR_BYTES = 64 * 1024 * 1024  # less than this is not growth


def run(service: Service, *, minutes: float, clients: int = CLIENTS) -> dict[str, object]:
    """Ask for some minutes; the figures, once everything that must hold was checked."""
    dataset = service.dataset(400)
    assert service.finished(service.submit(dataset, epochs=1), 120.0)["status"] == "succeeded"
    training = service.submit(dataset, epochs=2000, image_size=96)
    kinds = [predict, live, jobs, datasets, wrong]
    crowd = [Client(service.url, kinds[number % len(kinds)], PAUSE_S) for number in range(clients)]
    for client in crowd:
        client.start()
    time.sleep(60.0 * minutes * WARM_UP)
    before = memory(service)
    time.sleep(60.0 * minutes * (1 - WARM_UP))
    after = memory(service)
    outcomes = [outcome for client in crowd for outcome in client.end()]
    status = service.ask("GET", f"/jobs/{training}")["status"]
    service.ask("POST", f"/jobs/{training}/cancel")
    figures = {
        "requests": len(outcomes),
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        "longest_s": round(max(outcome.seconds for outcome in outcomes), 2),
        "memory_mib": [round(value / 2**20) for value in (before, after)],
    }

    assert status == "running", status
    assert all(outcome.is_honest for outcome in outcomes), figures
    assert after < max(before * GROWTH, before + FLOOR_BYTES), figures
    return figures


def jobs(client: httpx.Client) -> httpx.Response:
    return client.get("/jobs?limit=10")


def datasets(client: httpx.Client) -> httpx.Response:
    return client.get("/datasets?limit=10")


def wrong(client: httpx.Client) -> httpx.Response:
    return client.post("/predict", content=PICTURE[:40], headers={"Content-Type": "image/png"})


def memory(service: Service) -> int:
    """Bytes that the service holds without its training children, each shared page counted once."""
    total = 0
    for pid, command in service.descendants().items():
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            is_child = Path(f"/proc/{pid}/comm").read_text().strip() == "denll-child"
        except OSError:
            continue
        if not is_child and "postgres" not in command:
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
