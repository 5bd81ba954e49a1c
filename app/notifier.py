"""The bell: an empty message that says "look in the database". Best effort - it may ring twice, late or never.

A worker finds its work in the table, so nothing here may raise, block for long, or carry state.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from app.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

log = logging.getLogger(__name__)

Bell = Literal["jobs", "datasets"]  # also the names of the queues
TASK = {"jobs": "worker.run_next_job", "datasets": "worker.run_next_dataset"}


def transport_options(settings: Settings) -> dict[str, object]:
    return {
        "socket_timeout": settings.connect_timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "health_check_interval": 25,
        "retry_on_timeout": False,
        "max_retries": 0,
    }


@functools.cache
def away() -> tuple[type[Exception], ...]:
    """What is raised when Redis does not answer."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    return OperationalError, RedisError, OSError


class Notifier:
    """One process's way to ring. Celery is loaded by its first use: it would be a quarter of the API's start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._busy = threading.Lock()

    @functools.cached_property
    def _celery(self) -> Celery:
        from celery import Celery

        celery = Celery("bell", broker=self._settings.redis_url, set_as_current=False)
        celery.conf.update(
            broker_transport_options=transport_options(self._settings),
            broker_connection_timeout=self._settings.connect_timeout_s,
            broker_connection_retry=False,
            task_ignore_result=True,
            task_serializer="json",
        )
        return celery

    def ring(self, bell: Bell) -> bool:
        """Ask a supervisor to look for work; False when Redis is away. Never raises, gives up in about two seconds."""
        if not self._busy.acquire(timeout=1.0):
            return False  # somebody is already finding out that Redis is slow; the dispatcher rings later
        try:
            self._celery.send_task(TASK[bell], queue=bell, retry=False, ignore_result=True)
        except away() as error:
            log.warning("bell not rung: %s", type(error).__name__)
            return False
        finally:
            self._busy.release()
        return True

    def waiting(self, bell: Bell) -> int | None:
        """How many bells nobody has heard yet; None when Redis is away."""
        try:
            with self._connection() as connection:
                return int(connection.default_channel.client.llen(bell))
        except away():
            return None

    def reachable(self) -> bool:
        try:
            with self._connection():
                return True
        except away():
            return False

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection that works, within a second."""
        with self._celery.connection_for_write(connect_timeout=1) as connection:
            connection.ensure_connection(max_retries=1, timeout=1, interval_start=0, interval_step=0)
            yield connection

    def close(self) -> None:
        if "_celery" in self.__dict__:
            self._celery.close()
