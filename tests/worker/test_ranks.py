"""A job on several devices through the real worker: two CPU processes, one model, and never an orphan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app import errors as problems
from app import work
from app.db.session import transaction
from app.db.tables import Job
from app.jobs import attempt
from app.notifier import Notifier
from ml import errors
from ml.distributed.launch import RankEnded
from ml.serving.predictor import Predictor
from tests.servers import eventually
from tests.worker.doubles import full_disk
from tests.worker.harness import SIDE, ServiceHarness, alive, children, opened
from worker import control_channel
from worker.children import failures, ranks
from worker.children.job_reporter import FencedOff, Interrupted

EPOCHS = 12


class TwoDeviceHarness(ServiceHarness):
    """A service whose supervisor offers two devices."""

    data: uuid.UUID
    worker: subprocess.Popen[bytes]

    def begin(self, **spec: object) -> uuid.UUID:
        job = self.submit(self.data, **({"epochs": EPOCHS, "gpus": 2} | spec))
        notifier = Notifier(self.settings)
        notifier.notify("jobs")
        notifier.close()
        return job

    def ranks(self) -> list[int]:
        """Once both compute: the launcher of the job, rank 0 and rank 1."""
        child = self.child(self.worker)
        return [child, *eventually(lambda: pids if len(pids := sorted(children(child))) == 2 else [], what="ranks")]

    def in_the_middle(self, job: uuid.UUID) -> list[int]:
        self.until(job, lambda row: (row.checkpoint_step or 0) >= 3)
        return self.ranks()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, shared_redis: str) -> Iterator[TwoDeviceHarness]:
    harness = TwoDeviceHarness(tmp_path_factory.mktemp("service"), "", shared_redis, devices="cpu,cpu", threads=2)
    try:
        harness.worker = harness.supervisor()
        harness.data = harness.dataset()
        yield harness
    finally:
        harness.close()


def test_F02_a_killed_rank_costs_one_attempt_and_no_bit(harness: TwoDeviceHarness) -> None:
    """The job ends with the one model that an undisturbed pair makes, and it predicts."""
    undisturbed, job = harness.begin(), harness.begin()
    assert harness.ended(undisturbed).state == "succeeded", harness.logs()
    pids = harness.in_the_middle(job)
    os.kill(pids[2], signal.SIGKILL)

    done = harness.ended(job)

    assert (done.state, done.attempt) == ("succeeded", 2), harness.logs()
    assert harness.reasons(job) == ["child_killed"], harness.logs()
    one, other = (harness.models(job_id) for job_id in (undisturbed, job))
    assert len(one) == len(other) == 1
    assert one[0].digest == other[0].digest
    assert [event.data["epoch"] for event in harness.history(job, "metric")] == list(range(1, EPOCHS + 1))
    predictor = Predictor.load(harness.files.model(other[0].id), "cpu")
    assert predictor.predict([np.zeros((SIDE, SIDE, 3), dtype=np.uint8)])[0].probabilities.sum() == pytest.approx(1.0)
    eventually(lambda: not any(map(alive, pids)), what="the end of all processes")


def test_a_cancelled_pair_ends_in_time(harness: TwoDeviceHarness) -> None:
    job = harness.begin(epochs=1000)
    pids = harness.in_the_middle(job)
    with transaction(harness.engine) as session:
        work.request_cancel(session, Job, job)

    assert harness.ended(job, 20.0).state == "cancelled"
    assert harness.models(job) == []
    eventually(lambda: not any(map(alive, pids)), what="the end of all processes")


def test_a_failure_of_all_ranks_fails_the_job_once(harness: TwoDeviceHarness) -> None:
    """No rank finds pretrained weights; the job fails as it would with one process."""
    job = harness.begin(pretrained=True)
    failed = harness.ended(job)

    assert failed.error is not None, harness.logs()
    assert (failed.state, failed.attempt, failed.error["code"]) == ("failed", 1, "missing_weights")


def test_a_drained_pair_leaves_its_checkpoint_and_no_process(harness: TwoDeviceHarness) -> None:
    job = harness.begin(epochs=1000)
    pids = harness.in_the_middle(job)
    harness.worker.send_signal(signal.SIGTERM)

    row = harness.until(job, lambda row: row.state == "queued")
    assert (row.attempts_without_progress, harness.reasons(job)) == (0, ["drained"])
    assert harness.worker.wait(30.0) == 0
    eventually(lambda: not any(map(alive, pids)), what="the end of all processes")
    with transaction(harness.engine) as session:
        work.request_cancel(session, Job, job)


def test_F15_a_rank_that_waits_for_space_at_the_end_waits_alone(tmp_path: Path, database_url: str) -> None:
    """The disk may stay full for longer than the others would wait for the first rank."""
    knobs = {"devices": "cpu,cpu", "threads": 2, "stall_s": 5.0, "checkpoint_s": 1000.0, "checkpoint_min_s": 1000.0}
    with opened(tmp_path, database_url, "redis://127.0.0.1:1/0", **knobs) as harness:
        job = harness.submit(harness.dataset(), gpus=2)
        with transaction(harness.engine) as session:
            claim = attempt.claim(session, "test", 60.0, devices=2)
        assert claim is not None
        space = tmp_path / "space"
        launcher = harness.start("tests.worker.doubles.full_disk", str(space), str(job), str(claim.fence))

        def tries() -> int:
            return sum("disk is full" in event.data["message"] for event in harness.history(job, "log"))

        eventually(
            lambda: tries() * full_disk.PAUSE_S > 1.5 * harness.settings.stall_s, seconds=60.0, what="a long wait"
        )
        space.touch()

        assert launcher.wait(30.0) == control_channel.FINISHED, harness.logs()
        assert harness.state(job) == "succeeded"
        assert len(harness.models(job)) == 1


@pytest.mark.parametrize(
    "error",
    [
        Interrupted("drain"),
        Interrupted("cancel"),
        FencedOff(),
        problems.DatabaseUnavailable("away"),
        errors.OutOfMemory("a training step ran out of memory", 8),
        errors.TrainingDiverged(3, "train"),
    ],
)
def test_F18_what_one_rank_meets_ends_the_attempt_as_if_there_were_no_others(error: Exception) -> None:
    """Relayed by the second rank; the first has only lost the second."""
    line = json.loads(json.dumps(ranks.relay_line(1, error)))
    with pytest.raises(Exception) as raised:
        ranks.raise_relayed([line], RankEnded(0, 1))

    assert isinstance(error, type(raised.value))
    if isinstance(error, errors.Failure):
        assert isinstance(raised.value, errors.Failure)
        assert failures.describe_failure(raised.value) == failures.describe_failure(error)
    if isinstance(error, Interrupted):
        assert isinstance(raised.value, Interrupted)
        assert raised.value.command == error.command
