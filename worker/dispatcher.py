"""The dispatcher: a loop that notifies supervisors of queued work, requeues work whose lease expired, and cleans up.

Two of them may run at once. While the database or Redis is unavailable work is delayed, and none is lost.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import cast

from app import local_files, logs, retention, work, worker_registry
from app.datasets import ingest_queue
from app.db.session import Engine, connect, transaction
from app.db.tables import Dataset, Job
from app.errors import DatabaseUnavailable, StorageUnavailable
from app.jobs import attempt
from app.notifier import TASKS, Notifier, QueueName
from app.settings import Settings, current
from app.shared_storage import SharedStorage, open_storage
from worker import orphan_cleanup
from worker import retention as expiry
from worker.heartbeat import Heartbeat, unique_name

log = logging.getLogger(__name__)

TABLES: dict[QueueName, work.WorkTable] = {"jobs": Job, "datasets": Dataset}
CLEAN_UP_EVERY_S = 60.0
COLLECT_EVERY_S = 3600.0
HEARTBEAT_RETENTION_S = 3600.0  # the row of a process without a heartbeat for this long is deleted
MAX_WAITING = 16  # pending notifications of a queue; more of them would have no effect


class Dispatcher:
    """One dispatcher.

    Args:
        settings: Periods and limits.
        engine: The database.
        notifier: Sends the notifications.
    """

    def __init__(self, settings: Settings, engine: Engine, notifier: Notifier) -> None:
        self._settings = settings
        self._engine = engine
        self._notifier = notifier
        self._storage = open_storage(settings)
        self._last_clean_up = self._last_collection = float("-inf")

    def run_once(self) -> None:
        """Do each task once. A task that fails does not stop the others, and is done again in the next round."""
        for task in (self.reap, self.notify, self.clean_up):
            try:
                task()
            except DatabaseUnavailable:
                log.warning("%s: the database is unavailable", task.__name__)
            except StorageUnavailable as error:
                log.warning("%s: %s", task.__name__, error.detail)
            except OSError:
                log.exception("%s: a file could not be read or deleted", task.__name__)

    def reap(self) -> None:
        """Requeue what is running under an expired lease."""
        limit = self._settings.max_attempts_without_progress
        with transaction(self._engine) as session:
            reaped = attempt.reap(session, limit) + ingest_queue.reap(session, limit)
        if reaped:
            log.warning("%d leases had expired", reaped)

    def notify(self) -> None:
        """Notify the supervisors of every queue that holds work."""
        for queue in TASKS:
            self._notify(cast(QueueName, queue))

    def _notify(self, queue: QueueName) -> None:
        # Read only, and the broker first: nothing is marked as notified when no notification can be sent.
        with transaction(self._engine, read_only=True) as session:
            if not work.count_queued(session, TABLES[queue]):
                return
        waiting = self._notifier.count_pending(queue)
        if waiting is None or waiting >= MAX_WAITING:
            return  # Redis is unavailable, or no supervisor consumes the queue

        # Each notification goes to one supervisor, and perhaps only one has enough devices: send at least as many as
        # there are supervisors.
        with transaction(self._engine) as session:
            due = work.mark_notified(session, TABLES[queue], self._settings.renotify_s)
            count = max(due, worker_registry.count_supervisors(session, queue)) if due else 0
        for _ in range(min(count, MAX_WAITING - waiting)):
            self._notifier.notify(queue)

    def clean_up(self) -> None:
        """Delete expired rows and orphaned files, at most once in `CLEAN_UP_EVERY_S`."""
        if time.monotonic() - self._last_clean_up < CLEAN_UP_EVERY_S:
            return
        with transaction(self._engine) as session:
            retention.delete_expired(
                session,
                idempotency_keys_s=self._settings.idempotency_ttl_s,
                heartbeats_s=HEARTBEAT_RETENTION_S,
            )
        expiry.delete_batch(self._settings, self._engine, self._storage)
        with transaction(self._engine, read_only=True) as session:
            referenced = retention.referenced_files(session)
        ages = {
            "older_than_s": self._settings.orphan_files_s,
            "resumable_older_than_s": self._settings.upload_expires_s,
        }
        if isinstance(self._storage, SharedStorage):
            self._storage.sweep(**ages)
            removed = self._collect(self._storage, referenced)
        else:
            removed = orphan_cleanup.remove(self._storage, referenced, **ages)
        if removed:
            log.info("%d orphaned files removed", removed)
        self._last_clean_up = time.monotonic()

    def _collect(self, files: SharedStorage, referenced: retention.ReferencedFiles) -> int:
        """Delete what nobody needs from the object store, at most once in `COLLECT_EVERY_S`: it lists all objects."""
        if time.monotonic() - self._last_collection < COLLECT_EVERY_S:
            return 0
        self._last_collection = time.monotonic()
        return orphan_cleanup.collect(files, referenced, older_than_s=self._settings.orphan_files_s)


def run(dispatcher: Dispatcher, beat: Callable[[], bool], period_s: float, ended: threading.Event) -> None:
    """Write the heartbeat and run the dispatcher once every `period_s` seconds until `ended` is set."""
    while not ended.is_set():
        beat()
        dispatcher.run_once()
        ended.wait(period_s)


def main() -> None:
    settings = current()
    local_files.keep_private()
    logs.configure(settings.log_level, process="dispatcher")
    open_storage(settings).create()
    engine, notifier = connect(settings, "dispatcher"), Notifier(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    heartbeat = Heartbeat(engine, "dispatcher", None, unique_name())
    run(Dispatcher(settings, engine, notifier), heartbeat.beat, settings.dispatch_s, ended)
    heartbeat.end()
    notifier.close()
    engine.dispose()


if __name__ == "__main__":
    main()
