"""Faults of workers, children, bells and checkpoints: real processes, killed by the pid the test started or found."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from app import work
from app.db.session import transaction
from app.db.tables import Job
from app.jobs import events
from tests.faults.conftest import EPOCHS, FaultHarness, kill
from tests.servers import eventually
from tests.worker.harness import alive

pytestmark = pytest.mark.timeout(150)


def checkpoints(house: FaultHarness, job: Job) -> list[Path]:
    """Checkpoints on disk, newest first."""
    found = house.files.job(job.id).glob("attempt-*/checkpoints/step-*")
    whole = [path for path in found if path.name.removeprefix("step-").isdigit()]
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def strike_inside_a_write(folder: Path, child: int) -> None:
    """Kill the child while a checkpoint is half written; looks without pause, as a write takes some milliseconds."""
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        if any(folder.glob("attempt-*/checkpoints/step-*.tmp-*")):
            kill(child)
            return
    raise AssertionError("no checkpoint was written")


def test_F02_a_killed_child_costs_one_attempt_and_no_worker(stricken: FaultHarness) -> None:
    worker = stricken.working()
    job = stricken.begin()
    stricken.in_the_middle(job)
    kill(stricken.child(worker))

    done = stricken.succeeded(job)

    assert "child_killed" in stricken.reasons(job)
    assert done.attempt == 2
    assert worker.poll() is None


def test_F05_doubled_and_late_bells_start_nothing_twice(stricken: FaultHarness) -> None:
    stricken.working()
    job = stricken.begin()
    stricken.ring(10)
    stricken.succeeded(job)
    stricken.ring(10)
    other = stricken.begin(epochs=1)
    assert stricken.ended(other).state == "succeeded"

    assert stricken.job(job).attempt == 1
    running = [event for event in stricken.history(job, "status") if event.data["status"] == "running"]
    assert len(running) == 1


def test_F16_a_kill_inside_a_checkpoint_write_leaves_the_one_before(stricken: FaultHarness) -> None:
    worker = stricken.working()
    job = stricken.begin()
    stricken.in_the_middle(job)
    folder = stricken.files.job(job)
    for _ in range(2):
        child = stricken.child(worker)
        strike_inside_a_write(folder, child)
        eventually(lambda pid=child: not alive(pid), what="the end of the child")

    stricken.succeeded(job)

    assert stricken.job(job).attempts_without_progress == 0


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped"])
def test_F17_a_damaged_checkpoint_is_detected_and_the_one_before_used(stricken: FaultHarness, damage: str) -> None:
    worker = stricken.working()
    job = stricken.begin()
    stricken.in_the_middle(job)
    child = stricken.child(worker)
    os.kill(worker.pid, signal.SIGSTOP)  # so that nobody resumes before the damage is done
    try:
        kill(child)
        eventually(lambda: not alive(child), what="the end of the child")
        newest, before = checkpoints(stricken, stricken.job(job))[:2]
        path = newest / "tensors.safetensors"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage != "truncated" else data[: len(data) // 2])
    finally:
        os.kill(worker.pid, signal.SIGCONT)

    stricken.succeeded(job)

    told = " ".join(event.data["message"] for event in stricken.history(job, "log"))
    assert newest.name in told
    assert f"Resumed at step {before.name.removeprefix('step-')}" in told


def test_F20_cancelled_stays_cancelled_whatever_restarts(stricken: FaultHarness) -> None:
    worker = stricken.working()
    running = stricken.begin(epochs=2000)
    stricken.until(running, lambda job: job.progress is not None and job.progress["fraction"] > 0)
    queued = stricken.begin()
    asked = time.monotonic()
    with transaction(stricken.engine) as session:
        for job in (running, queued):
            if work.request_cancel(session, Job, job) == "cancelled":
                events.record_state(session, job, work.State.cancelled)

    assert stricken.state(queued) == "cancelled"
    assert stricken.ended(running, 10.0).state == "cancelled"
    assert time.monotonic() - asked < 10.0
    kill(worker.pid)
    worker.wait()
    stricken.working()
    other = stricken.begin(epochs=1)
    assert stricken.ended(other).state == "succeeded"
    for job in (running, queued):
        assert stricken.state(job) == "cancelled"
        assert stricken.models(job) == []
        assert [event.data["status"] for event in stricken.history(job, "done")] == ["cancelled"]


def test_F24_a_diverging_training_fails_with_a_hint_and_strict_json(stricken: FaultHarness) -> None:
    stricken.working()
    job = stricken.begin(learning_rate=10.0, momentum=0.99, weight_decay=1.0, schedule="constant", epochs=400)

    failed = stricken.ended(job)

    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "diverged"
    assert "learning_rate" in failed.error["hint"]
    kept = [event.data for event in stricken.history(job)]
    assert "NaN" not in json.dumps([failed.error, failed.progress, failed.metrics, kept], allow_nan=False)


def test_F03_sigterm_drains_and_counts_nothing(stricken: FaultHarness) -> None:
    worker = stricken.working()
    job = stricken.begin()
    stricken.in_the_middle(job)
    told = time.monotonic()
    worker.terminate()

    assert worker.wait(25.0) == 0
    assert time.monotonic() - told < 25.0
    waiting = stricken.job(job)
    assert waiting.state == "queued"
    assert waiting.attempts_without_progress == 0
    assert stricken.reasons(job) == ["drained"]
    stricken.working()
    stricken.succeeded(job)


def test_F01_a_killed_worker_takes_its_child_along_and_another_goes_on(stricken: FaultHarness) -> None:
    worker = stricken.working()
    job = stricken.begin()
    stricken.in_the_middle(job)
    child = stricken.child(worker)
    kill(worker.pid)
    worker.wait()

    eventually(lambda: not alive(child), seconds=5.0, what="the child's end with its worker")
    stricken.working()
    done = stricken.succeeded(job)

    assert stricken.reasons(job) == ["lease_expired"]
    assert done.attempt == 2


def test_F04_a_worker_that_wakes_up_late_writes_nothing(stricken: FaultHarness) -> None:
    first = stricken.working()
    second = stricken.supervisor()
    job = stricken.begin()
    stricken.in_the_middle(job)
    asleep = next(w for w in (first, second) if any(stricken.child_of(w)))
    child = stricken.child(asleep)
    for pid in (asleep.pid, child):
        os.kill(pid, signal.SIGSTOP)

    try:
        done = stricken.succeeded(job)
        assert stricken.reasons(job) == ["lease_expired"]
    finally:
        for pid in (asleep.pid, child):
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: not alive(child), what="the end of the child that slept")
    other = stricken.begin(epochs=1)
    assert stricken.ended(other).state == "succeeded"

    after = stricken.job(job)
    assert (after.state, after.attempt, after.metrics) == ("succeeded", done.attempt, done.metrics)
    assert len(stricken.models(job)) == 1
    assert first.poll() is None
    assert second.poll() is None
    second.terminate()
    assert second.wait(25.0) == 0


def test_F06_all_queued_jobs_run_after_redis_lost_everything(stricken: FaultHarness) -> None:
    stricken.working()
    stricken.redis.kill()
    jobs = [stricken.submit(stricken.data, epochs=1) for _ in range(2)]
    stricken.redis.start()
    back = time.monotonic()

    for job in jobs:
        assert stricken.ended(job, 60.0).state == "succeeded"
    assert time.monotonic() - back < 60.0


def test_all_epochs_are_there_and_nothing_is_left_behind(stricken: FaultHarness) -> None:
    """What the faults above left on disk: no temporary files, and no checkpoints of jobs that succeeded."""
    stricken.working()
    job = stricken.begin()
    stricken.succeeded(job)

    assert stricken.job(job).metrics["epochs"] == EPOCHS  # type: ignore[index]
    assert not [path for path in stricken.files.root.rglob("*") if ".tmp" in path.name and job.hex in str(path)]
    eventually(lambda: not list(stricken.files.job(job).glob("attempt-*/checkpoints")), what="checkpoints to go")
