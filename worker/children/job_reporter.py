"""A child's way to its row: what it has to say is gathered and written about once a second, in one fenced transaction.

A database that is away costs nothing but lateness, up to the grace after which the supervisor ends the child anyway.
What is trained, this module does not know.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.db.session import Engine, Session, transaction
from app.db.tables import Job
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from app.settings import Settings
from app.storage import Storage
from worker.control_channel import Command, ControlChannel

log = logging.getLogger(__name__)

SETTLE_PAUSE_S = 0.5


class Interrupted(Exception):
    """The attempt was told to stop: `told` says why."""

    def __init__(self, told: Command) -> None:
        super().__init__(told)
        self.told: Command = told


class FencedOff(Exception):
    """Another attempt owns the job now; nothing this one writes has any effect."""


class JobReporter:
    """Says what an attempt at a job does, and hears what it should do."""

    def __init__(
        self, settings: Settings, engine: Engine, job_id: uuid.UUID, fence: int, leash: ControlChannel
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._job = (job_id, fence)
        self._leash = leash
        self._writes: list[Callable[[Session], bool]] = []
        self._epochs: list[Mapping[str, Any]] = []
        self._progress: Mapping[str, Any] | None = None
        self._polled = self._heard = time.monotonic()

    def epoch(self, report: Mapping[str, Any]) -> None:
        self._epochs.append(report)

    def progress(self, progress: Mapping[str, Any]) -> None:
        """Only the latest is kept: progress is what is shown, not a record."""
        self._progress = progress

    def log(self, level: str, message: str) -> None:
        self._writes.append(lambda session: attempt.append_log(session, *self._job, level, message))

    def checkpointed(self, step: int, path: str) -> None:
        self._writes.append(lambda session: attempt.record_checkpoint(session, *self._job, step, path))

    def due(self) -> bool:
        """Whether it is time to look at the row again; cheap enough for every step."""
        return self._leash.told is not None or time.monotonic() - self._polled >= self._settings.poll_s

    def turn(self) -> None:
        """Write what was gathered and hear whether to go on.

        Raises Interrupted, FencedOff, or DatabaseUnavailable after the grace.
        """
        if self._leash.told is not None:
            raise Interrupted(self._leash.told)
        try:
            order = self._write()
        except DatabaseUnavailable:
            if time.monotonic() - self._heard > self._settings.database_grace_s:
                raise
            log.warning("nothing written: the database is away")
            self._polled = time.monotonic()
            return
        if order == "fenced_off":
            raise FencedOff
        if order == "cancel":
            raise Interrupted(order)

    def settle(self, effect: Callable[[Session], bool]) -> None:
        """Write everything gathered, then the effect that ends the job; waits for a database that is away."""
        while True:
            try:
                if self._write() == "fenced_off":
                    raise FencedOff
                with transaction(self._engine) as session:
                    done = effect(session)
            except DatabaseUnavailable:
                if time.monotonic() - self._heard > self._settings.database_grace_s:
                    raise
                log.warning("not settled yet: the database is away")
                time.sleep(SETTLE_PAUSE_S)
            else:
                if not done:
                    raise FencedOff
                return

    def _write(self) -> Literal["cancel", "fenced_off"] | None:
        with transaction(self._engine) as session:
            order = attempt.read_command(session, *self._job)
            if order != "fenced_off" and not all(write(session) for write in self._gathered()):
                order = "fenced_off"
        self._writes.clear()
        self._epochs.clear()
        self._progress = None
        self._polled = self._heard = time.monotonic()
        return order

    def _gathered(self) -> list[Callable[[Session], bool]]:
        writes = list(self._writes)
        epochs, progress = list(self._epochs), self._progress
        if epochs:
            writes.insert(0, lambda session: attempt.record_epochs(session, *self._job, epochs))
        if progress is not None:
            writes.append(lambda session: attempt.report_progress(session, *self._job, progress))
        return writes


@dataclass(frozen=True)
class JobContext:
    """What one attempt was given: the job, the fence it works under, and those it talks to."""

    settings: Settings
    files: Storage
    engine: Engine
    desk: JobReporter
    tie: ControlChannel
    job: Job
    fence: int

    @property
    def folder(self) -> Path:
        """The only folder this attempt writes to."""
        return self.files.attempt(self.job.id, self.fence)

    @property
    def dataset(self) -> Path:
        """The folder of the job's data set."""
        assert self.job.dataset_id is not None, "a data set in use is not deleted"
        return self.files.dataset(self.job.dataset_id)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices to compute on, one for each share of the job; a job may ask for less than a GPU."""
        own = self.settings.device_names[: self.job.gpus]
        asked = str(self.job.spec.get("device", "auto"))
        if asked == "auto" or own[0].startswith(asked):
            return own
        return (asked,) * len(own)  # a GPU on a host that has none ends in no_device

    def still_wanted(self) -> None:
        """To be called during long work: says that it advances, and raises when told to stop."""
        self.tie.beat()
        if self.desk.due():
            self.desk.turn()
