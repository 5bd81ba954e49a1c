"""The Celery side of a supervisor: settings with their reasons, the two bells, and the moments of the process's life.

`python -m worker.supervisor.celery_app -Q jobs` (or `datasets`) is one supervisor. A task carries nothing and returns
nothing: what is to be done stands in the table.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from celery import Celery, signals

from app import logs
from app.db.session import Engine, connect
from app.errors import DatabaseUnavailable
from app.notifier import TASKS, QueueName, transport_options
from app.settings import Settings, current
from worker.heartbeat import Presence, device, name
from worker.supervisor.supervise import Supervisor

log = logging.getLogger(__name__)

EXIT_DEAF = 70
TICK_S = 0.02  # with prefetch disabled Celery listens again only when its loop turns, which else is once a second


def configuration(settings: Settings) -> dict[str, Any]:
    return {
        "broker_url": settings.redis_url,
        "broker_transport_options": transport_options(settings),
        "broker_connection_retry": True,  # Redis may come back after any time;
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # until then the rows wait
        "broker_connection_timeout": settings.connect_timeout_s,
        "worker_pool": "threads",  # no torch here, nothing to isolate; and a thread sees the drain flag
        "worker_concurrency": 1,  # one piece of work at a time
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,  # a busy worker hoards no bells
        "task_acks_late": False,  # late acks are redelivered after an hour: a long job would run twice
        "task_ignore_result": True,  # the row is the truth
        "task_default_queue": "jobs",
        "accept_content": ["json"],  # never pickle
        "task_serializer": "json",
        "worker_hijack_root_logger": False,  # our log lines stay JSON
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,  # nothing is revoked or inspected through the broker
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # training does not need Redis
    }


class Life:
    """What one supervisor process owns, from its start to its end."""

    def __init__(self, settings: Settings, bell: QueueName) -> None:
        self.engine: Engine = connect(settings)
        owner = name()
        self.supervisor = Supervisor(settings, self.engine, bell, owner)
        devices = self.supervisor.devices
        self._presence = Presence(
            self.engine, "supervisor", device(settings) if devices else None, owner, devices=devices
        )
        self._settings = settings
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="presence", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        self._presence.end()
        self.supervisor.close()
        self.engine.dispose()

    def _live(self) -> None:
        """Say that we are here, and end a process that has gone deaf (Celery may stop consuming after a reconnect)."""
        while True:
            self._presence.tell(draining=self.supervisor.draining.is_set())
            if self._deaf():
                log.error("no bell heard for %.0f s while work waits: leaving", self._settings.stalled_consumer_s)
                os._exit(EXIT_DEAF)
            if self._ended.wait(min(self._settings.worker_heartbeat_s, self._settings.stalled_consumer_s)):
                return

    def _deaf(self) -> bool:
        supervisor = self.supervisor
        silent = time.monotonic() - supervisor.heard > self._settings.stalled_consumer_s
        if supervisor.busy or supervisor.draining.is_set() or not silent:
            return False
        try:
            return supervisor.work_waits() and not supervisor.busy
        except DatabaseUnavailable:
            return False


def create(settings: Settings) -> Celery:
    """A Celery application that answers both bells; which one this process hears is said with `-Q`."""
    celery = Celery("denll", set_as_current=False)
    celery.conf.update(configuration(settings))
    lives: dict[QueueName, Life] = {}

    for bell in TASKS:
        celery.task(name=TASKS[bell], ignore_result=True)(_answer(lives, cast(QueueName, bell)))

    def begin(sender: Any, **_: Any) -> None:
        # In the main thread, whose end the kernel's death signal of the zygote follows.
        for queue in sender.app.amqp.queues.consume_from:
            lives[queue] = Life(settings, queue)

    def listen(sender: Any, **_: Any) -> None:
        if sender.hub is not None:  # also after every reconnect
            sender.hub.call_repeatedly(TICK_S, lambda: None)

    def drain(**_: Any) -> None:
        for life in lives.values():
            life.supervisor.draining.set()

    def end(**_: Any) -> None:
        for life in lives.values():
            life.end()

    signals.setup_logging.connect(_log, weak=False)
    signals.worker_init.connect(begin, weak=False)
    signals.worker_ready.connect(listen, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(end, weak=False)
    return celery


def _answer(lives: dict[QueueName, Life], bell: QueueName) -> Any:
    def run_next() -> None:
        if life := lives.get(bell):
            life.supervisor.answer()

    return run_next


def _log(**_: Any) -> None:
    logs.configure(current().log_level, process="supervisor")
    for every_bell in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(every_bell).setLevel(logging.WARNING)


def __getattr__(attribute: str) -> Celery:
    """`celery -A worker.supervisor.celery_app` finds `app`; importing this module makes nothing."""
    if attribute == "app":
        return create(current())
    raise AttributeError(attribute)


def main(arguments: Sequence[str]) -> None:
    flags = ["--pool=threads", "--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    create(current()).worker_main(["--quiet", "worker", *flags, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
