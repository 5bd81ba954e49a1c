"""Writes what an attempt reports into its rows, about once a second.

Each write is one transaction under the attempt's fence, and returns whether to go on. A database that is
unavailable only delays reports, until the grace period ends. This module does not know what is trained.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

from app.db.session import Engine, Session, transaction
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from app.settings import Settings
from worker.control_channel import ControlChannel, StopCommand

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.5


class Interrupted(Exception):
    """The attempt has to stop: `drain` to go on later, `cancel` for good."""

    def __init__(self, command: StopCommand) -> None:
        super().__init__(command)
        self.command: StopCommand = command


class FencedOff(Exception):
    """Another attempt has claimed the job; nothing that this one writes has an effect."""


class JobReporter:
    """Reports what an attempt does, and learns whether it should stop.

    Args:
        settings: How often the row is written, and how long the database may be unavailable.
        engine: The database.
        job_id: The job.
        fence: Number of the attempt's claim.
        channel: The connection to the supervisor.
    """

    def __init__(
        self, settings: Settings, engine: Engine, job_id: uuid.UUID, fence: int, channel: ControlChannel
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._claim = (job_id, fence)
        self._channel = channel
        self._writes: list[Callable[[Session], bool]] = []
        self._epochs: list[Mapping[str, Any]] = []
        self._progress: Mapping[str, Any] | None = None
        self._hardware: str | None = None
        self._last_try = self._last_write = time.monotonic()

    # --- Buffered reports

    def record_epoch(self, report: Mapping[str, Any]) -> None:
        """Record the report of a finished epoch; it has the epoch's number, from 1, as `epoch`."""
        self._epochs.append(report)

    def set_hardware(self, hardware: str) -> None:
        """Name what the attempt computes on; every progress from here on says it."""
        self._hardware = hardware

    def report_progress(self, progress: Mapping[str, Any]) -> None:
        """Replace the progress (fields: `GET /jobs/{id}`, without `hardware`); only the latest is written."""
        self._progress = {**progress, "hardware": self._hardware}

    def record_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Store metrics that are known before the job ends."""
        self._writes.append(lambda session: attempt.report_metrics(session, *self._claim, metrics))

    def log(self, level: str, message: str) -> None:
        """Add a line to the job's log, which its user reads; `level` is info, warning or error."""
        self._writes.append(lambda session: attempt.append_log(session, *self._claim, level, message))

    def record_checkpoint(self, step: int, path: str) -> None:
        """Record a checkpoint that is complete on disk.

        Args:
            step: Training steps it holds.
            path: Its folder, relative to the job's.
        """
        self._writes.append(lambda session: attempt.record_checkpoint(session, *self._claim, step, path))

    # --- Whether to go on

    def beat(self) -> None:
        """Report to the supervisor that the work advances."""
        self._channel.beat()

    def is_due(self) -> bool:
        """Whether it is time for `sync()`; cheap enough to be called every step."""
        return self._channel.command is not None or time.monotonic() - self._last_try >= self._settings.poll_s

    def sync(self) -> None:
        """Write the buffered reports, and learn whether to go on.

        Raises:
            Interrupted: The attempt has to stop.
            FencedOff: Another attempt owns the job.
            DatabaseUnavailable: The database has been unavailable for longer than the grace period.
        """
        if self._channel.command is not None:
            raise Interrupted(self._channel.command)
        try:
            command = self._write()
        except DatabaseUnavailable:
            if self._is_grace_over():
                raise
            log.warning("nothing written: the database is unavailable")
            self._last_try = time.monotonic()
            return
        if command == "fenced_off":
            raise FencedOff
        if command == "cancel":
            raise Interrupted(command)

    def check_cancelled(self) -> None:
        """Beat, and `sync()` when it is due; to be called during long work. Raises what `sync` raises."""
        self.beat()
        if self.is_due():
            self.sync()

    # --- The end of the job

    def succeed(self, metrics: Mapping[str, Any]) -> None:
        """End the job successfully, without a model, with its final metrics. Raises what `finish` raises."""
        self.finish(lambda session: attempt.succeed(session, *self._claim, metrics=metrics))

    def fail(self, error: Mapping[str, str]) -> None:
        """End the job with an error (code, title, detail, hint). Raises what `finish` raises."""
        self.finish(lambda session: attempt.fail(session, *self._claim, error))

    def finish(self, effect: Callable[[Session], bool]) -> None:
        """Write the buffered reports, then what ends the job; wait for a database that is unavailable.

        Args:
            effect: Ends the job in a transaction of its own; returns False when the claim is lost.

        Raises:
            FencedOff: Another attempt owns the job.
            DatabaseUnavailable: The database has been unavailable for longer than the grace period.
        """
        while True:
            try:
                if self._write() == "fenced_off":
                    raise FencedOff
                with transaction(self._engine) as session:
                    done = effect(session)
            except DatabaseUnavailable:
                if self._is_grace_over():
                    raise
                log.warning("not finished yet: the database is unavailable")
                time.sleep(RETRY_PAUSE_S)
            else:
                if not done:
                    raise FencedOff
                return

    def _is_grace_over(self) -> bool:
        return time.monotonic() - self._last_write > self._settings.database_grace_s

    def _write(self) -> Literal["cancel", "fenced_off"] | None:
        """Write the buffered reports in one transaction, none when the claim is lost; returns the command, if any."""
        with transaction(self._engine) as session:
            command = attempt.read_command(session, *self._claim)
            if command != "fenced_off" and not all(write(session) for write in self._buffered()):
                command = "fenced_off"
        self._writes.clear()
        self._epochs.clear()
        self._progress = None
        self._last_try = self._last_write = time.monotonic()
        return command

    def _buffered(self) -> list[Callable[[Session], bool]]:
        """The writes in their order: epochs, then log lines and checkpoints, then progress."""
        writes = list(self._writes)
        epochs, progress = list(self._epochs), self._progress
        if epochs:
            writes.insert(0, lambda session: attempt.record_epochs(session, *self._claim, epochs))
        if progress is not None:
            writes.append(lambda session: attempt.report_progress(session, *self._claim, progress))
        return writes
