"""One service on three simulated hosts: Postgres, Redis, API and dispatcher here, a supervisor on each other host."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from app.db.tables import Job
from app.shared_storage import SharedStorage
from tests import servers
from tests.hosts.network import Host, Missing, Network
from tests.servers import eventually, free_port
from tests.worker.harness import SIDE, ServiceHarness

EPOCHS = 80  # a second or more of training: a host is cut off in the middle
KEY = secrets.token_hex(16)
KNOBS = {
    "lease_s": 9.0,
    "database_grace_s": 4.0,
    "statement_timeout_s": 1.0,
    "admin_key": KEY,  # required to serve a network
    "min_free_bytes": 0,
}


class MultiHostHarness(ServiceHarness):
    """A service whose supervisors run on other hosts, with the same data folder or the same object store."""

    network: Network
    data: uuid.UUID
    undisturbed: str  # digest of the model of a job that nothing happens to
    supervisors: dict[str, subprocess.Popen[bytes]]
    client: httpx.Client

    def files_of(self, host: str) -> dict[str, object]:
        """Settings by which a host shares nothing but an object store, where there is one."""
        return {"data_dir": self.folder.parent / host} if isinstance(self.files, SharedStorage) else {}

    def environment(self, **more: object) -> dict[str, str]:
        return super().environment(admin_key=KEY, **more)

    def begin(self) -> uuid.UUID:
        """Submit a job to the API."""
        request: dict[str, Any] = {
            "dataset_id": str(self.data),
            "method": "ce",
            "network": "small",
            "epochs": EPOCHS,
            "batch_size": 16,
            "image_size": SIDE,
            "seed": 1,
            "precision": "f32",
        }
        answer = self.client.post("/jobs", json=request)
        assert answer.status_code == 202, answer.text
        return uuid.UUID(answer.json()["id"])

    def host_of(self, job: Job) -> str | None:
        """The name of the host that works on it now."""
        return job.lease_owner.split(":")[0] if job.lease_owner else None

    def in_the_middle(self, job_id: uuid.UUID) -> tuple[Job, Host]:
        """The job once another host could resume it, and the host that works on it."""
        job = self.until(job_id, lambda job: job.checkpoint_step is not None)
        return job, next(host for host in self.network.hosts if host.name == self.host_of(job))

    def succeeded(self, job_id: uuid.UUID) -> Job:
        """The job, ended well: one model, bit for bit that of an undisturbed job, and each epoch recorded once."""
        job = self.ended(job_id, 90.0)
        assert job.state == "succeeded", f"{job.state} {job.error}\n{self.logs()}"
        assert [model.digest for model in self.models(job_id)] == [self.undisturbed]
        assert [event.data["epoch"] for event in self.history(job_id, "metric")] == list(range(1, EPOCHS + 1))
        assert [event.data["status"] for event in self.history(job_id, "done")] == ["succeeded"]
        return job


@pytest.fixture(scope="package", params=["shared folder", "object store"])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MultiHostHarness]:
    if request.param == "object store" and (missing := servers.missing_for_s3()) is not None:
        pytest.skip(missing)
    with contextlib.ExitStack() as stack:
        try:
            network = Network()
        except Missing as missing:
            pytest.skip(f"NOT RUN: several hosts were not tested: {missing}")
        stack.callback(network.close)
        server = stack.enter_context(servers.postgres(network.address))
        url = stack.enter_context(servers.fresh_database(server))
        redis = stack.enter_context(servers.redis_server(network.address))
        store = {}
        if request.param == "object store":
            store = stack.enter_context(servers.s3_server(network.address)).settings
        harness = MultiHostHarness(tmp_path_factory.mktemp("service"), url, redis.url, **KNOBS, **store)
        stack.callback(harness.close)
        harness.network = network
        harness.data = harness.dataset()
        harness.client = stack.enter_context(serving(harness))
        harness.dispatcher()
        harness.supervisors = {
            host.name: harness.start(
                "worker.supervisor", "-Q", "jobs", name=host.name, within=host.within, **harness.files_of(host.name)
            )
            for host in network.hosts
        }
        first = harness.begin()
        assert harness.ended(first, 100.0).state == "succeeded", harness.logs()
        harness.undisturbed = harness.models(first)[0].digest
        yield harness


@contextlib.contextmanager
def serving(harness: MultiHostHarness) -> Iterator[httpx.Client]:
    """The API, at this machine's address among the hosts."""
    port = free_port()
    harness.start("app.main", host=harness.network.address, port=port)
    url = f"http://{harness.network.address}:{port}"
    with httpx.Client(base_url=url, timeout=30.0, headers={"Authorization": f"Bearer {KEY}"}) as client:
        eventually(lambda: answers(client), seconds=60.0, what="the API")
        yield client


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False
