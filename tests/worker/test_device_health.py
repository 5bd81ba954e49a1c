"""A host whose GPU does not work takes no jobs, and takes them again after the repair. The GPU is a stub, or hidden."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app import worker_registry
from app.db.session import transaction
from tests.worker.harness import ServiceHarness, opened
from tests.worker.test_supervisor import Run, queued
from worker.heartbeat import Heartbeat
from worker.supervisor import device_health, supervise
from worker.supervisor.device_health import DeviceHealth, Finding
from worker.supervisor.supervise import Supervisor

LOST = "torch cannot use a GPU: CUDA error: the device is lost"


class Gpu:
    """A GPU as a probe sees it: each answer once, the last one for ever."""

    def __init__(self, *faults: str | None) -> None:
        self.answers = [Finding(fault, () if fault else ("GPU-1",)) for fault in faults]
        self.probed: list[Sequence[str]] = []

    def __call__(self, devices: Sequence[str], timeout_s: float) -> Finding:
        self.probed.append(devices)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ServiceHarness]:
    with opened(tmp_path, "", "redis://127.0.0.1:1/0", devices="cuda") as harness:
        yield harness


def test_F27_a_cpu_is_not_probed() -> None:
    gpu = Gpu(LOST)
    health = DeviceHealth(("cpu", "cpu"), gpu)

    assert health.check()
    assert not health.is_to_blame(uuid.uuid4(), device_failed=True)
    assert gpu.probed == []


def test_F27_a_gpu_is_probed_once_and_after_a_fault_again(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(LOST, LOST, None)
    health = DeviceHealth(("cuda:0", "cuda:1"), gpu)

    assert not health.check()
    assert not health.check()  # the pause is not over
    assert (health.fault, gpu.probed) == (LOST, [["cuda:0", "cuda:1"]])
    monkeypatch.setattr(health, "_retry_at", 0.0)
    assert not health.check()
    monkeypatch.setattr(health, "_retry_at", 0.0)
    assert health.check()
    assert health.fault is None
    assert health.check()
    assert len(gpu.probed) == 3


def test_F28_the_third_job_in_a_row_that_its_device_fails_is_the_devices_fault() -> None:
    """Though a small probe succeeds; one job that fails three times may have itself to blame."""
    health = DeviceHealth(("cuda",), Gpu(None))
    one, two, three = (uuid.uuid4() for _ in range(3))

    assert [health.is_to_blame(job, device_failed=True) for job in (one, one, one, two)] == [False] * 4
    assert not health.is_to_blame(three, device_failed=False)
    assert health.is_to_blame(three, device_failed=True)
    assert "3 different jobs" in str(health.fault)


def test_F28_an_attempt_that_ends_well_speaks_for_the_device() -> None:
    health = DeviceHealth(("cuda",), Gpu(None))
    for _ in range(5):
        assert not health.is_to_blame(uuid.uuid4(), device_failed=True)
        health.record_success()


def test_F27_a_probe_of_a_device_that_works_finds_no_fault() -> None:
    assert device_health.run_probe(["cpu"], 60.0) == Finding(None)


def test_F27_a_probe_that_hangs_or_dies_is_a_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    for script, fault in (("exec sleep 60", "did not answer within 0 s"), ("exit 134", "ended with status 134")):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o700)
        assert str(device_health.run_probe(["cuda"], 0.2 if "sleep" in script else 60.0).fault).endswith(fault)


def test_F27_a_host_whose_gpu_cannot_be_used_takes_no_job_and_says_why(
    harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    job = queued(harness)
    run = Run(harness, "crashing", monkeypatch)
    run.thread.join(60.0)
    row = harness.job(job)
    beat = Heartbeat(harness.engine, "supervisor", "cuda", "host:1:a", devices=1)
    beat.beat(fault=run.supervisor.fault)
    with transaction(harness.engine, read_only=True) as session:
        (process,) = worker_registry.list_processes(session)
        is_alive = worker_registry.is_alive(session, "host")
    has_work = run.supervisor.has_work()
    run.end()

    assert (row.state, row.attempt, has_work) == ("queued", 0, False)
    assert str(process.fault).startswith("torch cannot use a GPU: ")
    assert not is_alive  # its container counts as unhealthy


@pytest.mark.parametrize(("answers", "counted"), [((None, LOST), 0), ((None, None), 3)])
def test_F28_an_attempt_counts_only_where_the_gpu_still_works(
    answers: tuple[str | None, ...], counted: int, harness: ServiceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost GPU costs the job nothing, and its host stops; a job that always breaks a working one is poison."""
    job = queued(harness)
    monkeypatch.setitem(supervise.CHILD_MODULES, "jobs", "tests.worker.doubles.device_failed")
    supervisor = Supervisor(harness.settings, harness.engine, "jobs", "test", probe=Gpu(*answers))
    supervisor.run_queued_work()
    row, fault = harness.job(job), supervisor.fault
    supervisor.close()

    assert row.attempts_without_progress == counted
    assert harness.reasons(job) == (["device_failed"] * 3 if counted else ["device_unavailable"])
    assert (row.state, fault) == (("failed", None) if counted else ("queued", LOST))


def test_F30_a_gpu_has_one_supervisor(harness: ServiceHarness) -> None:
    """The second one, as `--scale supervisor-jobs=2` starts it, claims nothing and says whose the GPU is."""
    first, second = (
        Supervisor(harness.settings, harness.engine, "jobs", name, probe=Gpu(None)) for name in ("first", "second")
    )
    queued(harness)

    assert [one.has_work() for one in (first, second, first)] == [True, False, True]
    assert (first.fault, second.fault) == (None, "the devices are those of first: give every supervisor its own")
    first.close()
    assert second.has_work()
    assert second.fault is None
    second.close()
