"""The Celery side of a supervisor: its settings with their reasons, the two tasks, and the signals of the process.

`python -m worker.supervisor -Q jobs` (or `datasets`) runs one supervisor. A task carries no arguments and returns
nothing: the work is in the database.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

from celery import Celery, signals

from app import local_files, logs
from app.db.session import Engine, connect
from app.notifier import TASKS, QueueName, transport_options
from app.settings import Settings, current
from worker import host_devices, host_facts
from worker.heartbeat import Heartbeat, unique_name
from worker.supervisor import transport
from worker.supervisor.supervise import Supervisor
from worker.supervisor.work_thread import WorkThread

log = logging.getLogger(__name__)

TICK_S = 0.02  # with prefetch disabled Celery reads the queue when its event loop turns, by default once a second


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings for a supervisor."""
    return {
        "broker_url": settings.redis_url,
        "broker_transport_options": transport_options(settings),
        "broker_connection_retry": True,  # Redis may be unavailable for any time; the rows wait
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": settings.connect_timeout_s,
        "worker_pool": "threads",  # there is no torch to isolate, and a thread sees the drain flag
        "worker_concurrency": 1,  # one piece of work at a time
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,  # a busy worker takes no notifications
        "task_acks_late": False,  # late acks are redelivered after an hour: a long job would run twice
        "task_ignore_result": True,  # the result is in the database
        "task_default_queue": "jobs",
        "accept_content": ["json"],  # never pickle
        "task_serializer": "json",
        "worker_hijack_root_logger": False,  # log lines stay JSON
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,  # nothing is revoked or inspected through the broker
        "worker_send_task_events": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # training does not need Redis
    }


class WorkerProcess:
    """What one supervisor process holds from its start to its end: database, work thread and heartbeat thread.

    Args:
        settings: Settings of the process.
        queue: The queue it consumes.
    """

    def __init__(self, settings: Settings, queue: QueueName) -> None:
        self.engine: Engine = connect(settings, "supervisor")
        owner = unique_name()
        self.supervisor = Supervisor(settings, self.engine, queue, owner)
        self.work = WorkThread(self.supervisor, settings.queue_poll_s)
        devices = self.supervisor.devices
        self._heartbeat = Heartbeat(
            self.engine,
            "supervisor",
            host_devices.names(settings)[0] if devices else None,
            owner,
            devices=devices,
            host=host_facts.read(settings) if devices else None,
        )
        self._period_s = settings.worker_heartbeat_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_ended, name="heartbeat", daemon=True)
        self._thread.start()
        self.work.start()

    def end(self) -> None:
        self.supervisor.draining.set()
        self.work.end()
        self._ended.set()
        self._thread.join()
        self._heartbeat.end()
        self.supervisor.close()
        self.engine.dispose()

    def _beat_until_ended(self) -> None:
        while True:
            self.supervisor.keep_devices()
            self._heartbeat.beat(draining=self.supervisor.draining.is_set(), fault=self.supervisor.fault)
            if self._ended.wait(self._period_s):
                return


def create(settings: Settings) -> Celery:
    """A Celery application with a task for each queue; which queue a process consumes is chosen with `-Q`."""
    transport.install()
    celery = Celery("denll", set_as_current=False)
    celery.conf.update(configuration(settings))
    processes: dict[QueueName, WorkerProcess] = {}

    for queue in TASKS:
        celery.task(name=TASKS[queue], ignore_result=True)(_task(processes, cast(QueueName, queue)))

    def start(sender: Any, **_: Any) -> None:
        # In the main thread: the kernel kills the fork server when the thread that started it ends.
        for queue in sender.app.amqp.queues.consume_from:
            processes[queue] = WorkerProcess(settings, queue)

    def shorten_tick(sender: Any, **_: Any) -> None:
        if sender.hub is not None:  # also after every reconnect
            sender.hub.call_repeatedly(TICK_S, lambda: None)

    def drain(**_: Any) -> None:
        for process in processes.values():
            process.supervisor.draining.set()

    def end(**_: Any) -> None:
        for process in processes.values():
            process.end()

    signals.setup_logging.connect(_configure_logs, weak=False)
    signals.worker_init.connect(start, weak=False)
    signals.worker_ready.connect(shorten_tick, weak=False)
    signals.worker_shutting_down.connect(drain, weak=False)
    signals.worker_shutdown.connect(end, weak=False)
    return celery


def _task(processes: dict[QueueName, WorkerProcess], queue: QueueName) -> Callable[[], None]:
    def run_next() -> None:
        if process := processes.get(queue):
            process.work.handle_notification()

    return run_next


def _configure_logs(**_: Any) -> None:
    logs.configure(current().log_level, process="supervisor")
    for logs_every_task in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(logs_every_task).setLevel(logging.WARNING)


def __getattr__(attribute: str) -> Celery:
    """`celery -A worker.supervisor.celery_app` finds `app`; importing this module creates nothing."""
    if attribute == "app":
        return create(current())
    raise AttributeError(attribute)


def main(arguments: Sequence[str]) -> None:
    """Run a supervisor.

    Args:
        arguments: Command-line arguments for `celery worker`, such as `-Q jobs`.
    """
    local_files.keep_private()
    flags = ["--pool=threads", "--concurrency=1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    create(current()).worker_main(["--quiet", "worker", *flags, *arguments])
