"""Faults between the door and the corridor, with the real API: an answer that was given is never lost, nor doubled."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from sqlalchemy import func, select

from app.db.session import transaction
from app.db.tables import Job
from tests.faults.conftest import FaultHarness
from tests.servers import eventually, free_port
from tests.worker.harness import ServiceHarness

pytestmark = pytest.mark.timeout(150)


@contextlib.contextmanager
def deaf_server() -> Iterator[str]:
    """An address that accepts connections and never says a word: a broker that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@contextlib.contextmanager
def api(house: ServiceHarness, **more: object) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """The real API of the house: its client, and its process."""
    port = free_port()
    process = house.start("app.main", port=port, **more)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
        eventually(lambda: answers(client), seconds=60.0, what="the API")
        yield client, process
    process.kill()
    process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def body(dataset: uuid.UUID) -> dict[str, object]:
    return {
        "dataset_id": str(dataset),
        "method": "ce",
        "network": "small",
        "epochs": 1,
        "batch_size": 16,
        "image_size": 16,
        "precision": "f32",
    }


def test_F11_a_job_starts_although_the_api_died_before_it_rang(harness: FaultHarness) -> None:
    harness.working()
    with deaf_server() as hanging, api(harness, redis_url=hanging) as (client, process):
        answer = client.post("/jobs", json=body(harness.data))
        process.kill()

    assert answer.status_code == 202
    assert harness.ended(uuid.UUID(answer.json()["id"]), 30.0).state == "succeeded"


def test_F22_twenty_requests_with_one_key_are_one_job(harness: FaultHarness) -> None:
    dataset, before = harness.data, jobs(harness)
    with api(harness) as (client, _):
        with ThreadPoolExecutor(20) as pool:
            send = lambda _: client.post("/jobs", json=body(dataset), headers={"Idempotency-Key": "once"})  # noqa: E731
            given = list(pool.map(send, range(20)))
        retried = client.post("/jobs", json=body(dataset), headers={"Idempotency-Key": "once"})
        other = client.post("/jobs", json=body(dataset) | {"epochs": 2}, headers={"Idempotency-Key": "once"})

    assert {answer.status_code for answer in given} <= {202, 409}
    made = {answer.json()["id"] for answer in given if answer.status_code == 202}
    assert made == {retried.json()["id"]}
    assert retried.headers["Idempotency-Replayed"] == "true"
    assert other.status_code == 422
    assert jobs(harness) == before + 1


def jobs(house: ServiceHarness) -> int:
    with transaction(house.engine, read_only=True) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0
