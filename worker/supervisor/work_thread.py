"""The thread of a supervisor that does the work. A notification wakes it, and without one a timer does.

A notification only saves time. Messages may be lost, the broker may hang, and Celery may stop consuming after a
reconnect (celery #8091): queued work starts all the same, after at most one period.
"""

from __future__ import annotations

import logging
import threading

from worker.supervisor.supervise import Supervisor

log = logging.getLogger(__name__)


class WorkThread:
    """Runs a supervisor's queued work in one thread, whoever asks for it.

    Args:
        supervisor: Claims and runs the work.
        period_s: How often an idle supervisor looks for queued work without being notified.
    """

    def __init__(self, supervisor: Supervisor, period_s: float) -> None:
        self._supervisor = supervisor
        self._period_s = period_s
        self._changed = threading.Condition()  # guards the three flags
        self._is_notified = self._is_busy = self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="work", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Wait until the thread has ended; a supervisor that drains ends soon."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()
        self._thread.join()

    def handle_notification(self) -> None:
        """Have queued work done, and wait until none is left: a busy supervisor takes no further notifications."""
        with self._changed:
            self._is_notified = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._has_ended or not (self._is_notified or self._is_busy))

    def _run(self) -> None:
        try:
            self._supervisor.check_devices()  # at once, so that the heartbeat soon says what is wrong
        except Exception:
            log.exception("the devices could not be checked")  # they are checked again before work is taken
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_notified or self._has_ended, self._period_s)
                if self._has_ended:
                    return
                is_notified, self._is_notified, self._is_busy = self._is_notified, False, True
            try:
                if is_notified or self._supervisor.has_work():
                    self._supervisor.run_queued_work()
                else:
                    self._supervisor.keep_ready()
            except Exception:
                log.exception("queued work could not be run")  # what was claimed is requeued when its lease ends
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()
