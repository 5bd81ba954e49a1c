"""A job's events as a stream: stored events from any id on, then new ones until the job ends.

Any process may write events, so the database is polled: once per period for all streams of this process together, and
only while there are streams. Streams that wait for the same event read it together, in threads of their own, so that
many streams cost other requests nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from fastapi.sse import format_sse_event
from sqlalchemy import Engine, func, select

from app.db import session as db
from app.db.tables import ENDED, Job, JobEvent, State
from app.errors import DatabaseUnavailable, TooManyEventStreams
from app.http.capacity import Capacity
from app.jobs import events
from app.settings import Settings

BATCH = 500
RECONNECT_MS = 2000
RETRY_S = 5
THREADS = 4


class EventBatch(NamedTuple):
    """The next events of a job, and its state before they were read; None where there is no such job."""

    events: list[EncodedEvent]
    state: State | None

    @property
    def ended(self) -> bool:
        """Whether there will be no more events than these."""
        return self.state is None or self.state in ENDED


class EncodedEvent(NamedTuple):
    """A stored event as a server-sent event."""

    id: int
    kind: str
    data: bytes


class EventReader:
    """Reads events in a few threads; streams that are at the same event of a job share one read.

    Args:
        engine: The database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._threads = CapacityLimiter(THREADS)
        self._reads: dict[tuple[uuid.UUID, int], asyncio.Task[EventBatch]] = {}

    async def newest_ids(self, jobs: set[uuid.UUID]) -> dict[uuid.UUID, int]:
        """The id of each job's last event; a deleted job is missing."""
        return await to_thread.run_sync(read_newest_ids, self._engine, jobs, limiter=self._threads)

    async def after(self, job_id: uuid.UUID, last_id: int) -> EventBatch:
        """The next events after `last_id`, as many as are read at once; DatabaseUnavailable.

        The result may be as old as a read that has begun before: then the poller wakes the stream once more.
        """
        key = (job_id, last_id)
        read = self._reads.get(key)
        if read is None:
            read = self._reads[key] = asyncio.create_task(self._read(job_id, last_id))
            read.add_done_callback(functools.partial(self._end_read, key))
        return await asyncio.shield(read)  # a stream that ends does not end what others wait for

    async def _read(self, job_id: uuid.UUID, last_id: int) -> EventBatch:
        return await to_thread.run_sync(read_events, self._engine, job_id, last_id, limiter=self._threads)

    def _end_read(self, key: tuple[uuid.UUID, int], read: asyncio.Task[EventBatch]) -> None:
        del self._reads[key]
        read.exception()  # asyncio logs one that nobody retrieves: every stream may have ended meanwhile

    async def close(self) -> None:
        """Return when no read uses a connection any more: they must be returned before the engine is disposed."""
        await asyncio.gather(*self._reads.values(), return_exceptions=True)


class EventPoller:
    """Wakes the streams of this process whose job has new events; the database is read every `period_s` seconds."""

    def __init__(self, reader: EventReader, period_s: float) -> None:
        self._reader, self._period_s = reader, period_s
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
                self._query = asyncio.ensure_future(self._reader.newest_ids(jobs))
                newest = await asyncio.shield(self._query)
                for woken, (job_id, last_id) in self._waiting.items():
                    if job_id in jobs and newest.get(job_id, last_id + 1) > last_id and not woken.done():
                        woken.set_result(None)


def stream_capacity(settings: Settings) -> Capacity:
    """How many event streams may be open; one more is a TooManyEventStreams."""

    def refusal(reason: str) -> TooManyEventStreams:
        return TooManyEventStreams(reason, retry_after_s=RETRY_S)

    most, per_key = settings.max_event_streams, settings.event_streams_per_key
    return Capacity(most, per_key, settings, unit="event streams", refusal=refusal)


async def stream_events(
    reader: EventReader, poller: EventPoller, job_id: uuid.UUID, last_id: int, *, heartbeat_s: float
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
            read = await reader.after(job_id, last_id)
            batch, ended = read.events, read.ended
        except DatabaseUnavailable:
            batch, ended = [], False
        more, newest = len(batch) == BATCH, batch[-1] if batch else None
        final = ended and not more
        # A retried job has an older `done` among its events. Only a `done` that nothing follows is sent. Whether
        # something follows the one at the end of this batch, the next read shows.
        if newest is not None and newest.kind == "done" and not final:
            batch = batch[:-1]
        for event in batch:
            last_id = event.id
            if event.kind != "done" or (final and event is newest):
                yield event.data
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


def read_events(engine: Engine, job_id: uuid.UUID, last_id: int) -> EventBatch:
    """The next events after `last_id`, at most `BATCH`."""
    with db.transaction(engine, read_only=True) as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
        rows = events.after(session, job_id, last_id, limit=BATCH)
        encoded = [
            EncodedEvent(
                row.id, row.kind, format_sse_event(id=str(row.id), event=row.kind, data_str=json.dumps(row.data))
            )
            for row in rows
        ]
        return EventBatch(encoded, state)


def read_newest_ids(engine: Engine, jobs: set[uuid.UUID]) -> dict[uuid.UUID, int]:
    """The id of each job's last event; a deleted job is missing."""
    statement = select(JobEvent.job_id, func.max(JobEvent.id)).where(JobEvent.job_id.in_(jobs))
    with db.transaction(engine, read_only=True) as session:
        return dict(session.execute(statement.group_by(JobEvent.job_id)).all())
