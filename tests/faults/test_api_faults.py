"""Faults around a request, with the real API: a job that was accepted is never lost and never doubled."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import func, select

from app.db.session import transaction
from app.db.tables import Dataset, Job
from tests.faults.conftest import FaultHarness
from tests.servers import eventually, free_port
from tests.worker.harness import ServiceHarness


@contextlib.contextmanager
def hanging_server() -> Iterator[str]:
    """An address that accepts connections and never answers: a Redis that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connections.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


@contextlib.contextmanager
def api(harness: ServiceHarness, **more: Any) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """A real API on the harness's database: its client, and its process."""
    port = free_port()
    process = harness.start("app.main", port=port, **more)
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


def test_F11_a_job_starts_although_the_api_died_before_it_notified(harness: FaultHarness) -> None:
    harness.working()
    with hanging_server() as redis_url, api(harness, redis_url=redis_url) as (client, process):
        answer = client.post("/jobs", json=body(harness.data))
        process.kill()

    assert answer.status_code == 202
    assert harness.ended(uuid.UUID(answer.json()["id"]), 30.0).state == "succeeded"


def test_F12_an_upload_that_the_api_did_not_survive_leaves_nothing(harness: FaultHarness) -> None:
    before = datasets(harness)
    with api(harness) as (client, process):
        host, port = client.base_url.host, client.base_url.port
        with socket.create_connection((host, port), timeout=10) as half:
            head = (b"POST /datasets?name=half HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: application/zip")
            half.sendall(b"\r\n".join((*head, b"Content-Length: 9000000", b"", b"")) + b"PK\x03\x04" + b"x" * 2_000_000)
            (begun,) = eventually(lambda: list((harness.folder / "uploads").iterdir()), what="the upload")
            process.kill()
            process.wait()
    assert begun.exists()
    with api(harness) as (client, _):
        restarted = harness.start("worker.dispatcher", orphan_files_s=0.5)
        eventually(lambda: not begun.exists(), what="its file deleted")
        assert datasets(harness) == before
        listed = {row["name"] for row in client.get("/datasets").json()["items"]}
        assert "half" not in listed
    restarted.kill()
    restarted.wait()


def test_F23_jobs_run_on_while_the_api_is_restarted(harness: FaultHarness) -> None:
    harness.working()
    with api(harness) as (client, process):
        job = harness.begin()
        harness.in_the_middle(job)
        process.kill()
        process.wait()
    with api(harness) as (client, process):
        assert client.get(f"/jobs/{job}").json()["status"] in {"running", "succeeded"}
        process.terminate()
        process.wait(20.0)

    assert harness.succeeded(job).attempt == 1
    assert harness.reasons(job) == []


@pytest.mark.alone
def test_F22_twenty_requests_with_one_key_are_one_job(harness: FaultHarness) -> None:
    dataset, before = harness.data, jobs(harness)
    with api(harness) as (client, _):
        with ThreadPoolExecutor(20) as pool:
            send = lambda _: client.post("/jobs", json=body(dataset), headers={"Idempotency-Key": "once"})  # noqa: E731
            responses = list(pool.map(send, range(20)))
        retried = client.post("/jobs", json=body(dataset), headers={"Idempotency-Key": "once"})
        other = client.post("/jobs", json=body(dataset) | {"epochs": 2}, headers={"Idempotency-Key": "once"})

    assert {answer.status_code for answer in responses} <= {202, 409}  # 409: the first is still in flight
    created = {answer.json()["id"] for answer in responses if answer.status_code == 202}
    assert created == {retried.json()["id"]}
    assert retried.headers["Idempotency-Replayed"] == "true"
    assert other.status_code == 422
    assert jobs(harness) == before + 1


def datasets(harness: ServiceHarness) -> int:
    with transaction(harness.engine, read_only=True) as session:
        return session.scalar(select(func.count()).select_from(Dataset)) or 0


def jobs(harness: ServiceHarness) -> int:
    with transaction(harness.engine, read_only=True) as session:
        return session.scalar(select(func.count()).select_from(Job)) or 0
