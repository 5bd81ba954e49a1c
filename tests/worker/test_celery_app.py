"""A supervisor as a process: what it does when notifications do not reach it, or are none."""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import select

from app import worker_registry
from app.db.session import transaction
from app.db.tables import Worker
from app.notifier import TASKS, Notifier
from app.settings import Settings
from tests.servers import RedisServer, eventually
from tests.worker.harness import ServiceHarness, opened
from worker import host_facts

GARBAGE = [
    b"{",
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"[1, 2]",
    b"null",
    b'{"body": "secret-of-a-client"}',
    b'{"__type__": "datetime", "__value__": "secret-of-a-client"}',
    b'{"__type__": "decimal", "__value__": "secret-of-a-client"}',
]


@pytest.fixture
def harness(tmp_path: Path, database_url: str, own_redis: RedisServer) -> Iterator[ServiceHarness]:
    knobs = {"queue_poll_s": 60.0, "warm_fork_server": False}
    with opened(tmp_path, database_url, own_redis.url, **knobs) as harness:
        yield harness


def is_listed(harness: ServiceHarness) -> bool:
    """Whether a supervisor has written a heartbeat."""
    with transaction(harness.engine, read_only=True) as session:
        return session.scalar(select(Worker.heartbeat_at)) is not None


def test_its_row_says_what_its_host_is(harness: ServiceHarness) -> None:
    harness.supervisor()
    eventually(lambda: is_listed(harness), what="its first heartbeat")

    with transaction(harness.engine, read_only=True) as session:
        (host,) = worker_registry.training_hosts(session, "cpu")
    assert host == host_facts.read(harness.settings)
    assert 0 < host.memory_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_work_starts_without_any_notification(harness: ServiceHarness) -> None:
    """Nobody notifies: for the supervisor that looks as if Celery had stopped consuming after a reconnect."""
    process = harness.supervisor(queue_poll_s=0.2)
    eventually(lambda: is_listed(harness), what="its first heartbeat")
    job = harness.submit(harness.dataset())

    assert harness.ended(job).state == "succeeded"
    assert process.poll() is None


def test_work_starts_although_the_broker_froze(harness: ServiceHarness, own_redis: RedisServer) -> None:
    """Redis is stopped while notifications are taken: Celery cannot acknowledge them, and may not consume again."""
    supervisor, _ = harness.supervisor(queue_poll_s=1.0), harness.dispatcher()
    dataset = harness.dataset()
    first = harness.submit(dataset, epochs=1)
    assert harness.ended(first).state == "succeeded"
    notifier = Notifier(harness.settings)
    for _ in range(50):
        notifier.notify("jobs")
    eventually(lambda: notifier.count_pending("jobs") in range(1, 50), what="notifications being taken")
    assert own_redis.process is not None
    os.kill(own_redis.process.pid, signal.SIGSTOP)
    try:
        job = harness.submit(dataset, epochs=1)
        frozen_at = time.monotonic()
        assert harness.ended(job, 20.0).state == "succeeded"  # it does not wait for the broker
        time.sleep(max(0.0, 8.0 - (time.monotonic() - frozen_at)))  # how long the broker hangs
    finally:
        os.kill(own_redis.process.pid, signal.SIGCONT)
    notifier.close()

    after = harness.submit(dataset, epochs=1)
    assert harness.ended(after, 20.0).state == "succeeded"
    assert supervisor.poll() is None
    supervisor.terminate()
    assert supervisor.wait(25.0) == 0


def test_messages_that_are_no_notifications_are_dropped_unread(harness: ServiceHarness, own_redis: RedisServer) -> None:
    process = harness.supervisor()
    dataset = harness.dataset()
    with redis.Redis.from_url(own_redis.url) as client:
        sent = GARBAGE + [json.dumps(message).encode() for message in almost_notifications()]
        client.lpush("jobs", *sent)
        eventually(lambda: client.llen("jobs") == 0, what="all of them read")
    job = harness.submit(dataset, epochs=1)
    notifier = Notifier(harness.settings)
    notifier.notify("jobs")
    notifier.close()

    done = harness.ended(job)  # by the notification: its own look comes after a minute
    assert (done.state, done.error) == ("succeeded", None)
    assert process.poll() is None
    assert f"{len(sent)} so far" in harness.logs()
    assert "secret-of-a-client" not in harness.logs()


def almost_notifications() -> list[dict[str, Any]]:
    """Messages that each differ from a notification in one field."""
    body = base64.b64encode(json.dumps([[], {}, {}]).encode()).decode()
    headers = {"lang": "py", "task": TASKS["jobs"], "id": "1"}
    properties = {"delivery_tag": "1", "body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": ""}}
    good = {
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": properties,
    }
    pickled = {"content-type": "application/x-python-serialize", "content-encoding": "binary"}
    arguments = base64.b64encode(b'[["secret-of-a-client"], {}, {}]').decode()
    return [
        good | {"body": "not base64, secret-of-a-client"},
        good | {"body": arguments},
        good | {"body": body, "headers": {}},
        good | {"body": body, "headers": None},
        good | {"body": body, "headers": headers | {"task": "secret-of-a-client"}},
        good | {"body": body, "headers": headers | {"task": ["secret-of-a-client"]}},
        good | {"body": body, "properties": {}},
        good | {"body": body, "properties": properties | {"delivery_tag": {}}},
        good | {"body": body} | pickled,
        {"body": body, "headers": headers, "properties": properties},
    ]


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [("fpu avx512_bf16 amx_bf16 amx_tile", "amx"), ("fpu avx512_bf16", "avx512"), ("fpu avx2", None)],
)
def test_a_host_says_which_instructions_it_has(tmp_path: Path, flags: str, bf16: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n", encoding="ascii")
    settings = Settings(data_dir=tmp_path, threads=3)

    assert host_facts.read(settings, cpuinfo)[1:] == (3, bf16)
    assert host_facts.read(settings, tmp_path / "nothing").bf16 is None
