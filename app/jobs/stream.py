"""A job's events as a stream: stored events from any id on, then new ones until the job ends.

Any process may write events, so the database is polled: once per period for all streams of this process together, and
only while there are streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator

from fastapi.sse import format_sse_event
from sqlalchemy import Engine, func, select
from starlette.concurrency import run_in_threadpool

from app.db import session as db
from app.db.tables import ENDED, Job, JobEvent
from app.errors import DatabaseUnavailable
from app.jobs import events

BATCH = 500
RECONNECT_MS = 2000


class EventPoller:
    """Wakes the streams of this process whose job has new events; the database is read every `period_s` seconds."""

    def __init__(self, engine: Engine, period_s: float) -> None:
        self._engine, self._period_s = engine, period_s
        self._waiting: dict[asyncio.Future[None], tuple[uuid.UUID, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._query: asyncio.Future[dict[uuid.UUID, int]] | None = None  # the running query, or the last one

    async def wait(self, job_id: uuid.UUID, last_id: int, timeout_s: float) -> None:
        """Return when the job has an event after `last_id` or is deleted, at the latest after `timeout_s` seconds."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting[woken] = (job_id, last_id)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await woken
        finally:
            del self._waiting[woken]

    async def close(self) -> None:
        """Stop, after a running query has ended: its connection must be returned before the engine is disposed."""
        if self._task is not None:
            self._task.cancel()
        if self._query is not None:
            with contextlib.suppress(DatabaseUnavailable):
                await self._query

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._period_s)
            jobs = {job_id for job_id, _ in self._waiting.values()}
            with contextlib.suppress(DatabaseUnavailable):
                # Shielded: cancelling the task does not end the thread, which `close` waits for.
                self._query = asyncio.ensure_future(run_in_threadpool(self._newest_ids, jobs))
                newest = await asyncio.shield(self._query)
                for woken, (job_id, last_id) in self._waiting.items():
                    if job_id in jobs and newest.get(job_id, last_id + 1) > last_id and not woken.done():
                        woken.set_result(None)

    def _newest_ids(self, jobs: set[uuid.UUID]) -> dict[uuid.UUID, int]:
        """The id of each job's last event; a deleted job is missing."""
        statement = select(JobEvent.job_id, func.max(JobEvent.id)).where(JobEvent.job_id.in_(jobs))
        with db.transaction(self._engine, read_only=True) as session:
            return dict(session.execute(statement.group_by(JobEvent.job_id)).all())


async def stream_events(
    engine: Engine, poller: EventPoller, job_id: uuid.UUID, last_id: int, *, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Yield every event after `last_id` as a server-sent event, and end after the job's last one.

    A comment is sent after `heartbeat_s` seconds without an event, so that proxies keep the connection open. While the
    database is unavailable the stream waits.
    """
    yield format_sse_event(retry=RECONNECT_MS)
    sent_at = time.monotonic()
    while True:
        # Read the next batch, and whether the job had ended before.
        try:
            rows, ended = await run_in_threadpool(read_events, engine, job_id, last_id)
        except DatabaseUnavailable:
            rows, ended = [], False
        more, newest = len(rows) == BATCH, rows[-1] if rows else None
        final = ended and not more
        # A retried job has an older `done` among its events. Only a `done` that nothing follows is sent. Whether
        # something follows the one at the end of this batch, the next read shows.
        if newest is not None and newest.kind == "done" and not final:
            rows.pop()
        for row in rows:
            last_id = row.id
            if row.kind != "done" or (final and row is newest):
                yield format_sse_event(id=str(row.id), event=row.kind, data_str=json.dumps(row.data))
                sent_at = time.monotonic()
        # End, read on, or wait for new events.
        if final:
            return
        if more:
            continue
        await poller.wait(job_id, last_id, sent_at + heartbeat_s - time.monotonic())
        if time.monotonic() - sent_at >= heartbeat_s:
            yield format_sse_event(comment="still here")
            sent_at = time.monotonic()


def read_events(engine: Engine, job_id: uuid.UUID, last_id: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether the job had ended before they were read (then there will be no more)."""
    with db.transaction(engine, read_only=True) as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
        return list(events.after(session, job_id, last_id, limit=BATCH)), state is None or state in ENDED


def is_exhausted(engine: Engine, job_id: uuid.UUID, last_id: int) -> bool:
    """Whether the job has ended and has no event after `last_id`."""
    rows, ended = read_events(engine, job_id, last_id)
    return ended and not rows
