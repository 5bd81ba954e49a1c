"""A supervisor as a process: what it does when no notification reaches it any more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from app import worker_registry
from app.db.session import transaction
from app.db.tables import Worker
from app.settings import Settings
from tests.servers import RedisServer, eventually
from tests.worker.harness import ServiceHarness, opened
from worker.heartbeat import host_facts
from worker.supervisor.celery_app import EXIT_STALLED

STALLED_S = 1.0


@pytest.fixture
def harness(tmp_path: Path, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    knobs = {"stalled_consumer_s": STALLED_S, "worker_heartbeat_s": 0.1, "warm_fork_server": False}
    with opened(tmp_path, "", own_redis.url, **knobs) as harness:
        yield harness


def test_a_supervisor_without_notifications_exits_when_work_waits_and_only_then(harness: ServiceHarness) -> None:
    """Nobody notifies: for the supervisor that looks as if Celery had stopped consuming after a reconnect."""
    process = harness.supervisor()

    def last_beat() -> datetime | None:
        with transaction(harness.engine, read_only=True) as session:
            return session.scalar(select(Worker.heartbeat_at))

    first = eventually(last_beat, what="its first heartbeat")
    with transaction(harness.engine, read_only=True) as session:
        (host,) = worker_registry.training_hosts(session, "cpu")
    assert host == host_facts(harness.settings)
    assert 0 < host.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    eventually(lambda: ((last_beat() or first) - first).total_seconds() > 2 * STALLED_S, what="the time limit")
    assert process.poll() is None

    job = harness.submit(harness.dataset())
    assert process.wait(20) == EXIT_STALLED
    assert (harness.state(job), harness.job(job).attempt) == ("queued", 0)


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fpu avx512_bf16 amx_bf16 amx_tile", "amx"), ("fpu avx512_bf16", "avx512"), ("fpu avx2", None)],
)
def test_a_host_says_which_instructions_it_has(tmp_path: Path, flags: str, bf16: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="ascii")
    settings = Settings(data_dir=tmp_path, threads=3)

    assert host_facts(settings, cpuinfo)[1:] == (3, bf16)
    assert host_facts(settings, tmp_path / "nothing").bf16 is None
