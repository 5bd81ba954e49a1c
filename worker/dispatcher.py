"""The loop that repairs: rings while anything is queued, takes back what dead workers held, removes what they left.

Safe to run twice, and no worse than late when the database or Redis is away. Knows no tensors.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import cast

from app import logs, retention, work, worker_registry
from app.datasets import ingest_queue
from app.db.session import Engine, connect, transaction
from app.db.tables import Dataset, Job
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from app.notifier import TASKS, Notifier, QueueName
from app.settings import Settings, current
from app.storage import Storage
from worker import orphan_cleanup
from worker.heartbeat import Presence, name

log = logging.getLogger(__name__)

TABLES: dict[QueueName, work.WorkTable] = {"jobs": Job, "datasets": Dataset}
TIDY_S = 60.0  # leftovers harm nobody for a minute
GONE_S = 3600.0  # a process silent this long has no row any more
BELLS_WAITING = 16  # more unheard bells than this say nothing new


class Dispatcher:
    def __init__(self, settings: Settings, engine: Engine, broker: Notifier) -> None:
        self._settings = settings
        self._engine = engine
        self._broker = broker
        self._storage = Storage(settings.data_dir)
        self._tidied = float("-inf")

    def look(self) -> None:
        """One round. Every part stands alone: what fails now is done in the next round."""
        for part in (self.reap, self.ring, self.tidy):
            try:
                part()
            except DatabaseUnavailable:
                log.warning("%s: the database is away", part.__name__)
            except OSError:
                log.exception("%s: a file could not be touched", part.__name__)

    def reap(self) -> None:
        limit = self._settings.max_attempts_without_progress
        with transaction(self._engine) as session:
            reaped = attempt.reap(session, limit) + ingest_queue.reap(session, limit)
        if reaped:
            log.warning("%d leases had expired", reaped)

    def ring(self) -> None:
        for bell in TASKS:
            self._ring(cast(QueueName, bell))

    def _ring(self, bell: QueueName) -> None:
        with transaction(self._engine, read_only=True) as session:
            if not work.count_queued(session, TABLES[bell]):
                return
        waiting = self._broker.count_pending(bell)
        if waiting is None or waiting >= BELLS_WAITING:
            return  # Redis is away, or nobody has listened for long: more of the same helps nobody
        with transaction(self._engine) as session:
            due = work.mark_notified(session, TABLES[bell], self._settings.renotify_s)
            # Each bell is heard by one supervisor, and the only one with enough devices may be any of them.
            bells = max(due, worker_registry.count_supervisors(session, bell)) if due else 0
        for _ in range(min(bells, BELLS_WAITING - waiting)):
            self._broker.notify(bell)

    def tidy(self) -> None:
        if time.monotonic() - self._tidied < TIDY_S:
            return
        with transaction(self._engine) as session:
            retention.delete_expired(session, idempotency_keys_s=self._settings.idempotency_ttl_s, heartbeats_s=GONE_S)
        with transaction(self._engine, read_only=True) as session:
            referenced = retention.referenced_files(session)
        removed = orphan_cleanup.remove(self._storage, referenced, older_than_s=self._settings.orphan_files_s)
        if removed:
            log.info("%d leftovers removed", removed)
        self._tidied = time.monotonic()


def run(dispatcher: Dispatcher, tell: Callable[[], bool], period_s: float, ended: threading.Event) -> None:
    """Look around until told to end."""
    while not ended.is_set():
        tell()
        dispatcher.look()
        ended.wait(period_s)


def main() -> None:
    settings = current()
    logs.configure(settings.log_level, process="dispatcher")
    Storage(settings.data_dir).create()
    engine, broker = connect(settings), Notifier(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    presence = Presence(engine, "dispatcher", None, name())
    run(Dispatcher(settings, engine, broker), presence.tell, settings.dispatch_s, ended)
    presence.end()
    broker.close()
    engine.dispose()


if __name__ == "__main__":
    main()
