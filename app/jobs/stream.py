"""A job's events as a stream: stored rows, replayed from any id, followed until the job ends.

It looks at the table twice a second in a thread: any process may write events, and a lost notification loses nothing.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator

from fastapi.sse import format_sse_event
from sqlalchemy import Engine, select
from starlette.concurrency import run_in_threadpool

from app.db import session as db
from app.db.tables import ENDED, Job, JobEvent
from app.errors import DatabaseAway
from app.jobs import events
from app.settings import Settings

BATCH = 500
RECONNECT_MS = 2000


async def follow(engine: Engine, settings: Settings, job_id: uuid.UUID, last_id: int) -> AsyncIterator[bytes]:
    """Every event after `last_id`, then `done`; a comment now and then keeps the connection alive."""
    yield format_sse_event(retry=RECONNECT_MS)
    said = time.monotonic()
    while True:
        try:
            rows, ended = await run_in_threadpool(look, engine, job_id, last_id)
        except DatabaseAway:
            rows, ended = [], False
        for row in rows:
            last_id = row.id
            # A retried job has an older `done` in its history: only one that nothing follows ends the stream.
            if row.kind == "done" and not (ended and row is rows[-1]):
                continue
            yield format_sse_event(id=str(row.id), event=row.kind, data_str=json.dumps(row.data))
            said = time.monotonic()
        if ended and len(rows) < BATCH:
            return
        if len(rows) == BATCH:
            continue
        if time.monotonic() - said >= settings.event_heartbeat_s:
            yield format_sse_event(comment="still here")
            said = time.monotonic()
        await asyncio.sleep(settings.event_poll_s)


def look(engine: Engine, job_id: uuid.UUID, last_id: int) -> tuple[list[JobEvent], bool]:
    """The next events, and whether the job had ended before they were read (then there will be no more)."""
    with db.transaction(engine, read_only=True) as session:
        state = session.scalar(select(Job.state).where(Job.id == job_id))
        return list(events.after(session, job_id, last_id, limit=BATCH)), state is None or state in ENDED


def over(engine: Engine, job_id: uuid.UUID, last_id: int) -> bool:
    """Whether a client that saw `last_id` has seen everything there will ever be."""
    rows, ended = look(engine, job_id, last_id)
    return ended and not rows
