"""Faults of workers, children, notifications and checkpoints: real processes, killed by their pid."""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from app import work
from app.db.session import transaction
from app.db.tables import Job, State
from app.jobs import events
from tests.faults.conftest import EPOCHS, FaultHarness, kill
from tests.servers import eventually
from tests.worker.harness import alive


def checkpoints(harness: FaultHarness, job: Job) -> list[Path]:
    """Checkpoints on disk, newest first."""
    paths = harness.files.job(job.id).glob("attempt-*/checkpoints/step-*")
    complete = [path for path in paths if path.name.removeprefix("step-").isdigit()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def kill_during_a_write(folder: Path, child: int) -> None:
    """Kill the child while a checkpoint is half written; looks without pause, as a write takes some milliseconds."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        if any(folder.glob("attempt-*/checkpoints/step-*.tmp-*")):
            kill(child)
            return
    raise AssertionError("no checkpoint was written")


def test_F02_a_killed_child_costs_one_attempt_and_no_worker(harness: FaultHarness) -> None:
    worker = harness.working()
    job = harness.begin()
    harness.in_the_middle(job)
    kill(harness.child(worker))

    done = harness.succeeded(job)

    assert "child_killed" in harness.reasons(job)
    assert done.attempt == 2
    assert worker.poll() is None


def test_F05_doubled_and_late_notifications_start_nothing_twice(harness: FaultHarness) -> None:
    harness.working()
    job = harness.begin()
    harness.notify(10)
    harness.succeeded(job)
    harness.notify(10)
    other = harness.begin(epochs=1)
    assert harness.ended(other).state == "succeeded"

    assert harness.job(job).attempt == 1
    running = [event for event in harness.history(job, "status") if event.data["status"] == "running"]
    assert len(running) == 1


def ended(pid: int) -> bool:
    return not alive(pid)


def test_F16_a_kill_inside_a_checkpoint_write_leaves_the_one_before(harness: FaultHarness) -> None:
    worker = harness.working()
    job = harness.begin()
    harness.in_the_middle(job)
    folder = harness.files.job(job)
    for _ in range(2):
        child = harness.child(worker)
        kill_during_a_write(folder, child)
        eventually(functools.partial(ended, child), what="the end of the child")

    harness.succeeded(job)

    assert harness.job(job).attempts_without_progress == 0


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped"])
def test_F17_a_damaged_checkpoint_is_detected_and_the_one_before_used(harness: FaultHarness, damage: str) -> None:
    worker = harness.working()
    job = harness.begin()
    harness.in_the_middle(job)
    child = harness.child(worker)
    os.kill(worker.pid, signal.SIGSTOP)  # so that nobody resumes before the damage is done
    try:
        kill(child)
        eventually(lambda: not alive(child), what="the end of the child")
        newest, before = checkpoints(harness, harness.job(job))[:2]
        path = newest / "tensors.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage != "truncated" else data[: len(data) // 2])
    finally:
        os.kill(worker.pid, signal.SIGCONT)

    harness.succeeded(job)

    messages = " ".join(event.data["message"] for event in harness.history(job, "log"))
    assert newest.name in messages
    assert f"Resumed at step {before.name.removeprefix('step-')}" in messages


@pytest.mark.alone
def test_F20_cancelled_stays_cancelled_whatever_restarts(harness: FaultHarness) -> None:
    worker = harness.working()
    running = harness.begin(epochs=2000)
    harness.until(running, lambda job: job.progress is not None and job.progress["fraction"] > 0)
    queued = harness.begin()
    requested = time.monotonic()
    with transaction(harness.engine) as session:
        for job in (running, queued):
            if work.request_cancel(session, Job, job) == "cancelled":
                events.record_state(session, job, State.cancelled)

    assert harness.state(queued) == "cancelled"
    assert harness.ended(running, 10.0).state == "cancelled"
    assert time.monotonic() - requested < 10.0
    kill(worker.pid)
    worker.wait()
    harness.working()
    other = harness.begin(epochs=1)
    assert harness.ended(other).state == "succeeded"
    for job in (running, queued):
        assert harness.state(job) == "cancelled"
        assert harness.models(job) == []
        assert [event.data["status"] for event in harness.history(job, "done")] == ["cancelled"]


def test_F24_a_diverging_training_fails_with_a_hint_and_strict_json(harness: FaultHarness) -> None:
    harness.working()
    job = harness.begin(learning_rate=10.0, momentum=0.99, weight_decay=1.0, schedule="constant", epochs=400)

    failed = harness.ended(job)

    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "diverged"
    assert "learning_rate" in failed.error["hint"]
    written = [event.data for event in harness.history(job)]
    assert "NaN" not in json.dumps([failed.error, failed.progress, failed.metrics, written], allow_nan=False)


@pytest.mark.alone
def test_F03_sigterm_drains_and_counts_nothing(harness: FaultHarness) -> None:
    worker = harness.working()
    job = harness.begin()
    harness.in_the_middle(job)
    signalled = time.monotonic()
    worker.terminate()

    assert worker.wait(25.0) == 0
    assert time.monotonic() - signalled < 25.0
    waiting = harness.job(job)
    assert waiting.state == "queued"
    assert waiting.attempts_without_progress == 0
    assert harness.reasons(job) == ["drained"]
    harness.working()
    harness.succeeded(job)


def test_F04_a_worker_that_wakes_up_late_writes_nothing(harness: FaultHarness) -> None:
    first = harness.working()
    second = harness.supervisor()
    job = harness.begin()
    harness.in_the_middle(job)
    stopped, child = harness.busy()
    with transaction(harness.engine) as session:  # a process stopped inside a transaction would lock all of SQLite
        session.execute(select(Job.id))
        for pid in (stopped.pid, child):
            os.kill(pid, signal.SIGSTOP)

    try:
        done = harness.succeeded(job)
        assert harness.reasons(job) == ["lease_expired"]
    finally:
        for pid in (stopped.pid, child):
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: not alive(child), what="the end of the stopped child")
    other = harness.begin(epochs=1)
    assert harness.ended(other).state == "succeeded"

    after = harness.job(job)
    assert (after.state, after.attempt, after.metrics) == ("succeeded", done.attempt, done.metrics)
    assert len(harness.models(job)) == 1
    assert first.poll() is None
    assert second.poll() is None  # it stays: the next test takes one of the two away


@pytest.mark.alone
def test_F01_a_killed_worker_takes_its_child_along_and_another_goes_on(harness: FaultHarness) -> None:
    harness.working()
    job = harness.begin()
    harness.in_the_middle(job)
    worker, child = harness.busy()
    kill(worker.pid)
    worker.wait()
    killed = time.monotonic()

    eventually(lambda: not alive(child), what="the child's end with its worker")
    assert time.monotonic() - killed < 5.0
    harness.working()
    done = harness.succeeded(job)

    assert harness.reasons(job) == ["lease_expired"]
    assert done.attempt == 2


@pytest.mark.alone
def test_F06_all_queued_jobs_run_after_redis_lost_everything(harness: FaultHarness) -> None:
    harness.working()
    harness.redis.kill()
    jobs = [harness.submit(harness.data, epochs=1) for _ in range(2)]
    harness.redis.start()
    back = time.monotonic()

    for job in jobs:
        assert harness.ended(job, 60.0).state == "succeeded"
    assert time.monotonic() - back < 60.0


@pytest.mark.alone
def test_all_epochs_are_there_and_nothing_is_left_behind(harness: FaultHarness) -> None:
    """What the faults above left on disk: no temporary files, and no checkpoints of jobs that succeeded."""
    worker = harness.working()
    job = harness.begin()
    harness.succeeded(job)

    assert harness.job(job).metrics["epochs"] == EPOCHS  # type: ignore[index]
    assert not [path for path in harness.files.root.rglob("*") if ".tmp" in path.name and job.hex in str(path)]
    eventually(lambda: not list(harness.files.job(job).glob("attempt-*/checkpoints")), what="checkpoints to go")
    worker.terminate()
    assert worker.wait(25.0) == 0
