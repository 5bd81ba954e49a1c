"""The poller of event streams: what it leaves behind when the API ends."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import event

from tests.app.conftest import BOTH, Client


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
