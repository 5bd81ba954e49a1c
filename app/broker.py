"""The bell: an empty message that says "look in the database". Best effort - it may ring twice, late or never.

A worker finds its work in the table, so nothing here may raise, block for long, or carry state.
"""

from __future__ import annotations

import logging
import threading
from typing import Literal

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from app.settings import Settings

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


class Broker:
    """One process's way to ring."""

    def __init__(self, settings: Settings) -> None:
        self._celery = Celery("bell", broker=settings.redis_url, set_as_current=False)
        self._celery.conf.update(
            broker_transport_options=transport_options(settings),
            broker_connection_timeout=settings.connect_timeout_s,
            broker_connection_retry=False,
            task_ignore_result=True,
            task_serializer="json",
        )
        self._busy = threading.Lock()

    def ring(self, bell: Bell) -> bool:
        """Ask a supervisor to look for work; False when Redis is away. Never raises, gives up in about two seconds."""
        if not self._busy.acquire(timeout=1.0):
            return False  # somebody is already finding out that Redis is slow; the dispatcher rings later
        try:
            self._celery.send_task(TASK[bell], queue=bell, retry=False, ignore_result=True, expires=3600)
        except (OperationalError, OSError) as error:
            log.warning("bell not rung: %s", type(error).__name__)
            return False
        finally:
            self._busy.release()
        return True

    def waiting(self, bell: Bell) -> int | None:
        """How many bells nobody has heard yet; None when Redis is away."""
        try:
            with self._celery.connection_for_write(connect_timeout=1) as connection:
                connection.ensure_connection(max_retries=1, timeout=1, interval_start=0, interval_step=0)
                return int(connection.default_channel.client.llen(bell))  # type: ignore[attr-defined]
        except (OperationalError, OSError, RedisError):
            return None

    def reachable(self) -> bool:
        try:
            with self._celery.connection_for_write(connect_timeout=1) as connection:
                connection.ensure_connection(max_retries=1, timeout=1, interval_start=0, interval_step=0)
        except (OperationalError, OSError):
            return False
        return True

    def close(self) -> None:
        self._celery.close()
