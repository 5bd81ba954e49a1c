"""Publishes the log of a running attempt to the object store, so that it is read on other hosts, also after a crash."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from app.errors import Problem
from app.shared_storage import SharedStorage
from app.storage import LOG_FILE

log = logging.getLogger(__name__)

PERIOD_S = 5.0


class LogPublisher:
    """Publishes in a thread of its own, so that an object store that hangs delays nothing else.

    Args:
        files: Has the object store.
    """

    def __init__(self, files: SharedStorage) -> None:
        self._files = files
        self._pool = ThreadPoolExecutor(1, "job-log")
        self._running: Future[None] | None = None
        self._next = 0.0
        self._published: tuple[Path, int] | None = None  # and its size

    def publish(self, job_id: uuid.UUID, fence: int, *, last: bool = False) -> None:
        """Publish the log of an attempt if it has grown: every few seconds, or as the last thing of the attempt."""
        if not last and (time.monotonic() < self._next or (self._running is not None and not self._running.done())):
            return
        self._next = time.monotonic() + PERIOD_S
        self._running = self._pool.submit(self._publish, self._files.attempt(job_id, fence) / LOG_FILE)

    def close(self) -> None:
        """Wait for what is being published."""
        self._pool.shutdown()

    def _publish(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):  # the attempt has not begun
            state = path, path.stat().st_size
            if state == self._published:
                return
            try:
                self._files.publish_copy(path, path)
            except (Problem, OSError) as error:
                log.warning("the log of an attempt was not published: %s", error)
            else:
                self._published = state
