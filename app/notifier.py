"""Notifications: empty messages over Redis that ask a supervisor to look for work in the database.

A notification may arrive twice, late or never: the work itself is in the tables, and the dispatcher notifies again. So
nothing here raises or waits for long when Redis is unavailable, and no message carries data.
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

QueueName = Literal["jobs", "datasets"]
TASKS = {"jobs": "worker.run_next_job", "datasets": "worker.run_next_dataset"}


def transport_options(settings: Settings) -> dict[str, object]:
    """Options of kombu's Redis transport under which an operation on a broker that hangs fails within seconds."""
    return {
        "socket_timeout": settings.connect_timeout_s,
        "socket_connect_timeout": settings.connect_timeout_s,
        "health_check_interval": 25,
        "retry_on_timeout": False,
        "max_retries": 0,
    }


@functools.cache
def unavailable_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean that Redis is unavailable."""
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    return OperationalError, RedisError, OSError


class Notifier:
    """Sends notifications. Celery is imported on first use, because it would take a quarter of the API's start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._busy = threading.Lock()

    @functools.cached_property
    def _celery(self) -> Celery:
        from celery import Celery

        celery = Celery("notifier", broker=self._settings.redis_url, set_as_current=False)
        celery.conf.update(
            broker_transport_options=transport_options(self._settings),
            broker_connection_timeout=self._settings.connect_timeout_s,
            broker_connection_retry=False,
            task_ignore_result=True,
            task_serializer="json",
        )
        return celery

    def notify(self, queue: QueueName) -> bool:
        """Ask a supervisor to look for work in a queue; False when Redis is unavailable.

        It never raises and takes at most about two seconds.
        """
        if not self._busy.acquire(timeout=1.0):
            return False  # another thread is waiting for a slow Redis; the dispatcher notifies later
        try:
            self._celery.send_task(TASKS[queue], queue=queue, retry=False, ignore_result=True)
        except unavailable_errors() as error:
            log.warning("notification not sent: %s", type(error).__name__)
            return False
        finally:
            self._busy.release()
        return True

    def count_pending(self, queue: QueueName) -> int | None:
        """How many notifications no supervisor has received yet; None when Redis is unavailable."""
        try:
            with self._connection() as connection:
                return int(connection.default_channel.client.llen(queue))
        except unavailable_errors():
            return None

    def is_reachable(self) -> bool:
        """Whether a connection to Redis is established within a second."""
        try:
            with self._connection():
                return True
        except unavailable_errors():
            return False

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Any]:
        """A connection to Redis that is established within a second, or one of `unavailable_errors()`."""
        with self._celery.connection_for_write(connect_timeout=1) as connection:
            connection.ensure_connection(max_retries=1, timeout=1, interval_start=0, interval_step=0)
            yield connection

    def close(self) -> None:
        if "_celery" in self.__dict__:
            self._celery.close()
