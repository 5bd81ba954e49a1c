"""Inference processes that are killed while clients predict without pause."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from tests.faults.conftest import FaultHarness, kill
from tests.faults.test_api_faults import api
from tests.servers import eventually, free_port
from tests.worker.harness import alive, children, pictures
from tests.worker.test_inference import accepts_connections

PICTURE = pictures(1)[0][2]
CLIENTS = 4


class Traffic:
    """Clients that each send one prediction after another; when each response came, and its status."""

    def __init__(self, url: httpx.URL, model: uuid.UUID) -> None:
        self.responses: list[tuple[float, int]] = []
        self._path = f"{str(url).rstrip('/')}/predict?model={model}"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(CLIENTS)]

    def _send(self) -> None:
        with httpx.Client(timeout=30.0) as client:
            while not self._ended.is_set():
                response = client.post(self._path, content=PICTURE, headers={"Content-Type": "image/png"})
                self.responses.append((time.monotonic(), response.status_code))

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def answered(self, count: int) -> None:
        """Wait until this many more predictions have succeeded."""
        until = self.succeeded() + count
        eventually(lambda: self.succeeded() >= until, seconds=30.0, what="predictions")

    def succeeded(self) -> int:
        return sum(status == 200 for _, status in self.responses)

    def failed(self) -> list[int]:
        return [status for _, status in self.responses if status != 200]

    def longest_gap(self) -> float:
        """The longest time without a prediction."""
        times = sorted(at for at, status in self.responses if status == 200)
        return max(after - before for before, after in itertools.pairwise(times))


@pytest.fixture
def model(harness: FaultHarness) -> uuid.UUID:
    harness.working()
    job = harness.begin(epochs=1)
    assert harness.ended(job).state == "succeeded"
    return harness.models(job)[0].id


@contextlib.contextmanager
def inference(harness: FaultHarness, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = harness.start("worker.inference", inference_listen=f"tcp://127.0.0.1:{port}")
    eventually(lambda: accepts_connections(port), seconds=90.0, what="the inference process")
    yield process
    process.terminate()
    assert process.wait(20.0) in (0, -9)


def serving(process: subprocess.Popen[bytes], besides: int = 0) -> int:
    """The pid of the process that answers, forked by this one."""
    (pid,) = eventually(lambda: [pid for pid in children(process.pid) if pid != besides], what="a serving process")
    return pid


@pytest.mark.alone
def test_predictions_go_on_within_a_second_and_a_half_when_the_serving_process_is_killed(
    harness: FaultHarness, model: uuid.UUID
) -> None:
    port = free_port()
    addresses = f"tcp://127.0.0.1:{port}"
    with (
        inference(harness, port) as process,
        api(harness, inference_addresses=addresses) as (client, _),
        Traffic(client.base_url, model) as traffic,
    ):
        traffic.answered(50)
        for _ in range(3):
            pid = serving(process)
            kill(pid)
            traffic.answered(50)
            assert serving(process, besides=pid)

    assert traffic.failed() == []  # they waited for the next process
    assert traffic.longest_gap() < 1.5


def test_the_serving_process_ends_with_its_parent(harness: FaultHarness) -> None:
    """Nobody is known to start the parent again: memory and the port are free at once."""
    port = free_port()
    parent = harness.start("worker.inference", inference_listen=f"tcp://127.0.0.1:{port}")
    eventually(lambda: accepts_connections(port), seconds=90.0, what="the inference process")
    orphan = serving(parent)
    kill(parent.pid)
    killed = time.monotonic()
    parent.wait()
    eventually(lambda: not alive(orphan), what="the end of the serving process")
    assert time.monotonic() - killed < 10.0
    assert not accepts_connections(port)


@pytest.mark.alone
def test_predictions_go_on_when_the_parent_is_killed_until_the_next_has_taken_over(
    harness: FaultHarness, model: uuid.UUID
) -> None:
    port = free_port()
    addresses = f"tcp://127.0.0.1:{port}"
    parent = harness.start("worker.inference", inference_listen=addresses, inference_takeover_s=30.0)
    eventually(lambda: accepts_connections(port), seconds=90.0, what="the inference process")
    with contextlib.ExitStack() as stack:
        client, _ = stack.enter_context(api(harness, inference_addresses=addresses))
        with Traffic(client.base_url, model) as traffic:
            traffic.answered(50)
            orphan = serving(parent)
            kill(parent.pid)
            parent.wait()
            traffic.answered(50)
            assert alive(orphan)
            successor = stack.enter_context(inference(harness, port))
            eventually(lambda: not alive(orphan), seconds=30.0, what="the end of the one before")
            traffic.answered(50)
            assert alive(serving(successor))

    assert traffic.failed() == []
    assert traffic.longest_gap() < 1.5


@pytest.mark.alone
def test_no_prediction_fails_with_two_addresses_whichever_process_is_killed(
    harness: FaultHarness, model: uuid.UUID
) -> None:
    ports = [free_port(), free_port()]
    addresses = ",".join(f"tcp://127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        first, second = [stack.enter_context(inference(harness, port)) for port in ports]
        client, _ = stack.enter_context(api(harness, inference_addresses=addresses))
        with Traffic(client.base_url, model) as traffic:
            traffic.answered(100)
            for pid in (serving(first), serving(second)):
                kill(pid)
                traffic.answered(100)
            kill(first.pid)
            first.wait()
            traffic.answered(100)

    assert traffic.failed() == []
    assert traffic.longest_gap() < 1.5
