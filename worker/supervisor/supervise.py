"""Sees one piece of work after another through: claim, child, lease, stop, settle. Knows no tensors, no SQL, no Celery.

The loop that renews the lease is the loop that watches the child: when either hangs, the lease ends and somebody else
takes over.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Protocol

from app import logs
from app.datasets import ingest_queue
from app.db.session import Engine, Session, transaction
from app.db.tables import State
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from app.notifier import QueueName
from app.settings import Settings
from app.work import Claim, HolderCommand
from worker import control_channel
from worker.supervisor.fork_server import Child, ChildRequest, ForkServer

log = logging.getLogger(__name__)

TICK_S = 1.0  # how often drain and stall are looked at while the child is silent
SETTLE_TRIES = 3
FENCED_GRACE_S = 1.0  # for a child whose claim is lost; it may not write, but it may hold the device
CHILDREN: dict[QueueName, str] = {"jobs": "worker.children.job", "datasets": "worker.children.ingest"}


class Desk(Protocol):
    """What may be written about one kind of work: `app.jobs.attempt` or `app.datasets.ingest_queue`."""

    def claim(self, session: Session, owner: str, lease_s: float, devices: int) -> Claim | None: ...

    def count_claimable(self, session: Session, owner: str, devices: int) -> int: ...

    def renew_lease(
        self, session: Session, row_id: uuid.UUID, fence: int, lease_s: float, /
    ) -> HolderCommand | None: ...

    def requeue(
        self, session: Session, row_id: uuid.UUID, fence: int, /, *, counts: bool, limit: int, reason: str
    ) -> State | None: ...


DESKS: dict[QueueName, Desk] = {"jobs": attempt, "datasets": ingest_queue}


@dataclass
class Watch:
    """What is known about one running child."""

    renewed: float = field(default_factory=time.monotonic)  # when the renewal that succeeded last was asked for
    advanced: float = field(default_factory=time.monotonic)  # when the child last said that it advances
    reason: str | None = None  # why it is being stopped
    deadline: float = float("inf")  # when a child told to stop is killed


class Supervisor:
    def __init__(self, settings: Settings, engine: Engine, bell: QueueName, owner: str) -> None:
        self.draining = threading.Event()
        self.heard = time.monotonic()  # when a bell was last answered
        self.busy = False
        self._settings = settings
        self._engine = engine
        self._owner = owner
        self.devices = len(settings.device_names) if bell == "jobs" else 0  # what one piece of work may use
        self._desk = DESKS[bell]
        self._module = CHILDREN[bell]
        self._zygote = ForkServer((self._module,), warm=settings.warm_fork_server)

    def answer(self) -> None:
        """A bell: see work through until none is queued. Never raises for reasons outside this process."""
        self.heard = time.monotonic()
        self.busy = True
        try:
            while not self.draining.is_set() and self._prepared():
                watch = Watch()  # before the question: the lease begins when the database hears it
                claim = self._claim()
                if claim is None:
                    return
                with logs.bound(request_id=claim.request_id, work_id=str(claim.id), fence=str(claim.fence)):
                    self._see_through(claim, watch)
        finally:
            self.busy = False
            self.heard = time.monotonic()

    def work_waits(self) -> bool:
        """Whether anything is queued that this supervisor could take. DatabaseUnavailable."""
        with transaction(self._engine, read_only=True) as session:
            return self._desk.count_claimable(session, self._owner, self.devices) > 0

    def close(self) -> None:
        self._zygote.close()

    def _prepared(self) -> bool:
        """Whether a child can be started; work is left to others while it cannot."""
        try:
            self._zygote.prepare()
        except OSError:
            log.exception("no child can be started")
            return False
        return True

    def _claim(self) -> Claim | None:
        try:
            with transaction(self._engine) as session:
                return self._desk.claim(session, self._owner, self._settings.lease_s, self.devices)
        except DatabaseUnavailable:
            log.warning("nothing claimed: the database is away")
            return None  # the dispatcher rings again

    def _see_through(self, claim: Claim, watch: Watch) -> None:
        log.info("attempt %d starts", claim.attempt)
        try:
            child = self._zygote.spawn(ChildRequest(self._module, claim.id, claim.fence, claim.request_id))
        except OSError:
            log.exception("no child could be started")
            self._settle(claim, "child_not_started")
            return
        try:
            status = self._attend(claim, child, watch)
        except BaseException:
            child.kill()  # nobody would watch it
            raise
        finally:
            child.close()
        reason = watch.reason or _reason(status)
        log.info("child ended with %d: %s", status, reason)
        if reason != "fenced_off":
            self._settle(claim, reason)

    def _attend(self, claim: Claim, child: Child, watch: Watch) -> int:
        """Hold the lease until the child has ended; its exit status."""
        due = watch.renewed + self._settings.heartbeat_s
        while (status := child.wait(min(TICK_S, due - time.monotonic()))) is None:
            now = time.monotonic()
            if child.advanced():
                watch.advanced = now
            order = None
            if now >= due:
                order = self._renew(claim, watch)
                due = time.monotonic() + self._settings.heartbeat_s
            if self._must_die(watch):
                log.warning("child is killed: %s", watch.reason)
                return child.kill()
            self._tell(child, watch, order)
        return status

    def _renew(self, claim: Claim, watch: Watch) -> HolderCommand | None:
        asked = time.monotonic()
        try:
            with transaction(self._engine) as session:
                order = self._desk.renew_lease(session, claim.id, claim.fence, self._settings.lease_s)
        except DatabaseUnavailable:
            log.warning("lease not renewed: the database is away")
            return None
        watch.renewed = asked
        return order

    def _must_die(self, watch: Watch) -> bool:
        now = time.monotonic()
        if now - watch.renewed > self._settings.database_grace_s:
            watch.reason = "database_unavailable"
        elif now - watch.advanced > self._settings.stall_s:
            watch.reason = "stalled"
        else:
            return now > watch.deadline
        return True

    def _tell(self, child: Child, watch: Watch, order: HolderCommand | None) -> None:
        if order == "fenced_off" and watch.reason != order:  # or settled by the child, which is about to end
            watch.reason, watch.deadline = order, time.monotonic() + FENCED_GRACE_S
            child.tell("cancel")
        elif watch.reason is None and order == "cancel":
            watch.reason, watch.deadline = "cancelled", time.monotonic() + self._settings.cancel_grace_s
            child.tell("cancel")
        elif watch.reason is None and self.draining.is_set():
            watch.reason, watch.deadline = "drained", time.monotonic() + self._settings.drain_s
            child.tell("drain")

    def _settle(self, claim: Claim, reason: str) -> None:
        """Put the work back unless the child settled it; when the database stays away, the reaper will."""
        limit = self._settings.max_attempts_without_progress
        for _ in range(SETTLE_TRIES):
            try:
                with transaction(self._engine) as session:
                    state = self._desk.requeue(
                        session, claim.id, claim.fence, counts=reason != "drained", limit=limit, reason=reason
                    )
            except DatabaseUnavailable:
                log.warning("attempt not settled: the database is away")
                self.draining.wait(TICK_S)
            else:
                if state is not None:
                    log.info("now %s: %s", state.value, reason)
                return


def _reason(status: int) -> str:
    if status < 0:
        log.warning("child was killed by %s", signal.Signals(-status).name)
        return "child_killed"
    return {
        control_channel.SETTLED: "settled",
        control_channel.FENCED_OFF: "fenced_off",
        control_channel.DRAINED: "drained",
        control_channel.STOPPED: "cancelled",
        control_channel.DATABASE_UNAVAILABLE: "database_unavailable",
    }.get(status, "child_failed")
