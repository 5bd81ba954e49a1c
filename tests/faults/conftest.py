"""One service for all faults of a database: its own Redis, a dispatcher, and a supervisor whenever one is needed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from app.db.tables import Job
from app.notifier import Notifier
from tests import servers
from tests.servers import eventually
from tests.worker.harness import ServiceHarness

EPOCHS = 40  # about two seconds on a quiet machine: long enough for a fault in the middle


class FaultHarness(ServiceHarness):
    """A service in which a test causes faults."""

    redis: servers.RedisServer
    data: uuid.UUID
    undisturbed: str  # digest of the model that an uninterrupted attempt makes

    def make_ready(self) -> None:
        """Start a dispatcher and a supervisor, and train the model of an undisturbed attempt."""
        self.dispatcher()
        self.working()
        self.data = self.dataset()
        first = self.begin()
        assert self.ended(first, 100.0).state == "succeeded", self.logs()
        self.undisturbed = self.models(first)[0].digest

    def working(self) -> subprocess.Popen[bytes]:
        """A running supervisor: the one there is, or else a new one."""
        for process in self.processes:
            if process.poll() is None and "worker.supervisor" in process.args:  # type: ignore[operator]
                return process
        return self.supervisor()

    def busy(self) -> tuple[subprocess.Popen[bytes], int]:
        """The supervisor that works on a job, and its child; which of several it is, chance decides."""

        def busy_now() -> Any:
            running = (process for process in self.processes if process.poll() is None)
            return next(((process, pid) for process in running for pid in self.child_of(process)), None)

        busy: tuple[subprocess.Popen[bytes], int] = eventually(busy_now, what="a training child")
        return busy

    def begin(self, **spec: object) -> uuid.UUID:
        """Submit a job that takes a while, and notify the supervisors."""
        job_id = self.submit(self.data, **({"epochs": EPOCHS} | spec))
        self.notify()
        return job_id

    def notify(self, times: int = 1) -> None:
        notifier = Notifier(self.settings)
        for _ in range(times):
            notifier.notify("jobs")
        notifier.close()

    def in_the_middle(self, job_id: uuid.UUID) -> Job:
        """The job once two checkpoints are written."""
        return self.until(job_id, lambda job: (job.checkpoint_step or 0) >= 6)

    def succeeded(self, job_id: uuid.UUID) -> Job:
        """The job, ended well: one model, bit for bit the one of an undisturbed attempt (INV3, INV5)."""
        job = self.ended(job_id)
        assert job.state == "succeeded", f"{job.state} {job.error}\n{self.logs()}"
        assert [model.digest for model in self.models(job_id)] == [self.undisturbed]
        assert [event.data["status"] for event in self.history(job_id, "done")] == ["succeeded"]
        numbers = [event.data["epoch"] for event in self.history(job_id, "metric")]
        assert numbers == list(range(1, EPOCHS + 1))
        return job


@pytest.fixture(scope="package", params=["sqlite", "postgres"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultHarness]:
    with contextlib.ExitStack() as stack:
        redis = stack.enter_context(servers.redis_server())
        url = ""
        if request.param == "postgres":
            url = stack.enter_context(servers.fresh_database(request.getfixturevalue("postgres_server")))
        harness = FaultHarness(tmp_path_factory.mktemp("service"), url, redis.url)
        stack.callback(harness.close)
        harness.redis = redis
        harness.make_ready()
        yield harness


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
