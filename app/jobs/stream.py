"""A job's events as a stream: stored rows, replayed from any id, followed until the job ends.

The table is looked at twice a second, because any process may write events and a lost notification loses nothing; once
for all streams of this process, and only as long as there are any.
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
    """Wakes the streams of this process whose job has something new."""

    def __init__(self, engine: Engine, period_s: float) -> None:
        self._engine, self._period_s = engine, period_s
        self._waiting: dict[asyncio.Future[None], tuple[uuid.UUID, int]] = {}
        self._watch: asyncio.Task[None] | None = None

    async def of(self, job_id: uuid.UUID, last_id: int, seconds: float) -> None:
        """Wait until the job has an event after `last_id`, or is gone; at most so long."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting[woken] = (job_id, last_id)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_out())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await woken
        finally:
            del self._waiting[woken]

    async def _look_out(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._period_s)
            jobs = {job_id for job_id, _ in self._waiting.values()}
            with contextlib.suppress(DatabaseUnavailable):
                newest = await run_in_threadpool(self._newest, jobs)
                for woken, (job_id, last_id) in self._waiting.items():
                    if job_id in jobs and newest.get(job_id, last_id + 1) > last_id and not woken.done():
                        woken.set_result(None)

    def _newest(self, jobs: set[uuid.UUID]) -> dict[uuid.UUID, int]:
        """The last event of each; a job that was deleted has none."""
        statement = select(JobEvent.job_id, func.max(JobEvent.id)).where(JobEvent.job_id.in_(jobs))
        with db.transaction(self._engine, read_only=True) as session:
            return dict(session.execute(statement.group_by(JobEvent.job_id)).all())


async def stream_events(
    engine: Engine, poller: EventPoller, job_id: uuid.UUID, last_id: int, *, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """Every event after `last_id`, then `done`; a comment now and then keeps the connection alive."""
    yield format_sse_event(retry=RECONNECT_MS)
    said = time.monotonic()
    while True:
        try:
            rows, ended = await run_in_threadpool(read_events, engine, job_id, last_id)
        except DatabaseUnavailable:
            rows, ended = [], False
        more, newest = len(rows) == BATCH, rows[-1] if rows else None
        final = ended and not more
        if newest is not None and newest.kind == "done" and not final:
            rows.pop()  # whether anything follows it, the next look shows
        for row in rows:
            last_id = row.id
            # A retried job has an older `done` in its history: only one that nothing follows ends the stream.
            if row.kind != "done" or (final and row is newest):
                yield format_sse_event(id=str(row.id), event=row.kind, data_str=json.dumps(row.data))
                said = time.monotonic()
        if final:
            return
        if more:
            continue
        await poller.of(job_id, last_id, said + heartbeat_s - time.monotonic())
        if time.monotonic() - said >= heartbeat_s:
            yield format_sse_event(comment="still here")
            said = time.monotonic()


def read_events(engine: Engine, job_id: uuid.UUID, last_id: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether the job had ended before they were read (then there will be no more)."""
    with db.transaction(engine, read_only=True) as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
        return list(events.after(session, job_id, last_id, limit=BATCH)), state is None or state in ENDED


def is_exhausted(engine: Engine, job_id: uuid.UUID, last_id: int) -> bool:
    """Whether a client that saw `last_id` has seen everything there will ever be."""
    rows, ended = read_events(engine, job_id, last_id)
    return ended and not rows
