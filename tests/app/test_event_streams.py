"""Event streams: how many may be open, what many of them cost, and what their poller leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from app.db import session as db
from app.jobs import events
from tests.app.conftest import ADMIN, BOTH, Client, LiveServer
from tests.servers import eventually


@contextlib.contextmanager
def streams(server: LiveServer, job_id: str, count: int, key: str = "") -> Iterator[list[tuple[int, dict[str, Any]]]]:
    """So many requests for the job's events, kept open: status of each, and the headers."""
    head = f"GET /jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    with contextlib.ExitStack() as stack:
        sockets = []
        for _ in range(count):
            sockets.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)))
            sockets[-1].sendall(head.encode() + b"\r\n")
        yield [read_head(connection) for connection in sockets]


def read_head(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    lines = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    return int(lines[0].split()[1]), headers


def post(server: LiveServer, path: str, body: Any, key: str) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{server.url}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read())


def statuses(answers: list[tuple[int, dict[str, Any]]]) -> list[int]:
    return sorted(status for status, _ in answers)


def test_open_streams_are_bounded_and_free_their_places_when_they_end(
    live: Callable[..., LiveServer], submit: Callable[..., Any]
) -> None:
    job_id, server = submit()["id"], live(max_event_streams=3)
    with streams(server, job_id, 5) as answers:
        assert statuses(answers) == [200, 200, 200, 429, 429]
        refused = next(headers for status, headers in answers if status == 429)
        assert int(refused["retry-after"]) > 0
        assert refused["content-type"] == "application/problem+json"

    def one_more() -> bool:
        with streams(server, job_id, 1) as answers:
            return statuses(answers) == [200]

    eventually(one_more, what="a place of a stream whose client is gone")


def test_DEG7_a_key_has_its_share_of_the_streams(live: Callable[..., LiveServer], submit: Callable[..., Any]) -> None:
    job_id, server = submit()["id"], live(admin_key=ADMIN, event_streams_per_key=2)
    greedy, other = (post(server, "/keys", {"name": n, "scopes": ["read"]}, ADMIN)["key"] for n in ("greedy", "other"))
    with streams(server, job_id, 4, greedy) as first, streams(server, job_id, 1, other) as second:
        assert statuses(first) == [200, 200, 429, 429]
        assert statuses(second) == [200]


def test_a_stream_that_is_refused_or_names_no_job_keeps_no_place(
    live: Callable[..., LiveServer], submit: Callable[..., Any]
) -> None:
    server = live(max_event_streams=1)
    for _ in range(3):
        with streams(server, str(uuid.uuid4()), 1) as answers:
            assert statuses(answers) == [404]
    with streams(server, submit()["id"], 1) as answers:
        assert statuses(answers) == [200]


@pytest.mark.slow
@pytest.mark.alone
def test_a_thousand_streams_leave_others_their_answers(
    live: Callable[..., LiveServer], submit: Callable[..., Any], client: Client
) -> None:
    """While the job has new events all the time."""
    job_id, server = submit()["id"], live(event_poll_s=0.2)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
                events.append(session, uuid.UUID(job_id), "log", {"line": "one more"})

    writer = threading.Thread(target=work)
    writer.start()
    try:
        with streams(server, job_id, 1000) as answers:
            assert statuses(answers) == [200] * 256 + [429] * 744
            for path in ("/jobs", "/livez") * 3:
                started = time.monotonic()
                with urllib.request.urlopen(f"{server.url}{path}", timeout=30) as response:
                    assert response.status == 200
                assert time.monotonic() - started < 1.0, path
    finally:
        ended.set()
        writer.join()


@BOTH
def test_streams_at_the_same_event_read_the_next_ones_together(client: Client, submit: Callable[..., Any]) -> None:
    job_id = uuid.UUID(submit()["id"])
    state = client.app.state  # type: ignore[attr-defined]
    statements: list[str] = []
    event.listen(state.engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    async def read() -> Any:
        return await asyncio.gather(*(state.event_reader.after(job_id, 0) for _ in range(100)))

    assert client.portal is not None
    batches = client.portal.call(read)
    assert len(batches) == 100
    assert all(batch is batches[0] and batch.events for batch in batches)
    assert sum("FROM job_event" in statement for statement in statements) == 1


@BOTH
def test_the_api_closes_its_connections_although_the_poller_is_querying(with_settings: Callable[..., Client]) -> None:
    """A connection that comes back after the engine is disposed would be collected unclosed."""
    client = with_settings()
    state = client.app.state  # type: ignore[attr-defined]
    opened: list[Any] = []
    closed: list[Any] = []
    querying = threading.Event()

    def delay(*_: Any) -> None:
        querying.set()
        time.sleep(0.3)

    event.listen(state.engine, "connect", lambda connection, _: opened.append(connection))
    event.listen(state.engine, "close", lambda connection, _: closed.append(connection))
    event.listen(state.engine, "before_cursor_execute", delay)
    assert client.portal is not None
    client.portal.start_task_soon(state.event_poller.wait, uuid.uuid4(), 0, 0.05)
    assert querying.wait(10.0)
    client.__exit__(None, None, None)

    assert opened
    assert closed == opened
