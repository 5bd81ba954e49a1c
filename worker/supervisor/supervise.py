"""Claims one job or data set after another and supervises the child that does the work.

The loop that renews the lease also watches the child: when either hangs, the lease ends and another supervisor takes
over. This module imports neither torch nor Celery and writes no SQL.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from app import logs, worker_registry
from app.datasets import ingest_queue
from app.db.session import Engine, Session, transaction
from app.db.tables import State
from app.errors import DatabaseUnavailable
from app.jobs import attempt
from app.notifier import QueueName
from app.settings import Settings
from app.shared_storage import SharedStorage, open_storage
from app.work import Claim, HolderCommand
from worker import control_channel, host_devices
from worker.supervisor.device_health import DeviceHealth, Probe, run_probe
from worker.supervisor.fork_server import Child, ChildRequest, ForkServer
from worker.supervisor.log_publisher import LogPublisher

log = logging.getLogger(__name__)

TICK_S = 1.0  # how often drain and stall are checked while the child sends nothing
REQUEUE_TRIES = 3
FENCED_GRACE_S = 1.0  # for a child whose claim is lost: it may not write, but it may hold the device
CHILD_MODULES: dict[QueueName, str] = {"jobs": "worker.children.job", "datasets": "worker.children.ingest"}


DEVICE_FAILED = "device_failed"  # the child met an error of its device
SUSPICIOUS = (DEVICE_FAILED, "child_failed", "child_killed", "stalled")  # ends that a broken GPU may cause
STORAGE_UNAVAILABLE = "storage_unavailable"
UNCOUNTED = ("drained", "device_unavailable", STORAGE_UNAVAILABLE)  # ends that the job did not cause


class WorkQueue(Protocol):
    """One kind of work in the database: `app.jobs.attempt` or `app.datasets.ingest_queue`."""

    def claim(self, session: Session, owner: str, lease_s: float, devices: int) -> Claim | None: ...

    def count_claimable(self, session: Session, owner: str, devices: int) -> int: ...

    def renew_lease(
        self, session: Session, row_id: uuid.UUID, fence: int, lease_s: float, /
    ) -> HolderCommand | None: ...

    def requeue(
        self, session: Session, row_id: uuid.UUID, fence: int, /, *, counts: bool, limit: int, reason: str
    ) -> State | None: ...


WORK_QUEUES: dict[QueueName, WorkQueue] = {"jobs": attempt, "datasets": ingest_queue}


@dataclass
class ChildState:
    """What the supervisor knows of its running child. Times are `time.monotonic()`."""

    renewed: float = field(default_factory=time.monotonic)  # when the latest successful renewal was requested
    advanced: float = field(default_factory=time.monotonic)  # when the child last reported that it advances
    stop_reason: str | None = None  # why it is being stopped
    deadline: float = float("inf")  # when a child that is being stopped is killed


class Supervisor:
    """Claims, runs and requeues the work of one queue, one piece at a time.

    Args:
        settings: Lease, grace periods and devices.
        engine: The database.
        queue: Which queue's work is taken.
        owner: A name no other process has; it is written into the rows that are claimed.
        probe: Checks GPUs.

    Attributes:
        devices: How many devices one piece of work may use; 0 for work that uses none.
        draining: Set to stop claiming and to have the running child write a checkpoint and stop.
    """

    def __init__(
        self, settings: Settings, engine: Engine, queue: QueueName, owner: str, *, probe: Probe = run_probe
    ) -> None:
        self.devices = len(settings.device_names) if queue == "jobs" else 0
        self.draining = threading.Event()
        self._settings = settings
        self._engine = engine
        self._owner = owner
        self._storage = open_storage(settings)
        self._log_publisher: LogPublisher | None = None
        if isinstance(self._storage, SharedStorage):
            self._storage.create()  # nobody else of this host may have done it
            if queue == "jobs":
                self._log_publisher = LogPublisher(self._storage)
        self._had_disk = True
        self._storage_fault: str | None = None
        self._queue = WORK_QUEUES[queue]
        self._module = CHILD_MODULES[queue]
        self._has_devices = False  # leased to this supervisor
        self._taken: str | None = None  # the fault, where another one has them
        self._health = DeviceHealth(host_devices.names(settings) if self.devices else (), probe)
        self._fork_server = ForkServer((self._module,), preload=settings.warm_fork_server)
        self._renewals = ThreadPoolExecutor(1, "lease")  # a database that hangs keeps nobody from killing the child

    @property
    def fault(self) -> str | None:
        """The fault of the devices for which no work is taken; None while they can be used."""
        return self._health.fault or self._taken

    def run_queued_work(self) -> None:
        """Do queued work until none is left. Failures of the database or of a child are logged, not raised."""
        while not self.draining.is_set() and self._can_take_work() and self._can_start_child():
            state = ChildState()  # before the claim: the lease begins when the database executes it
            claim = self._claim()
            if claim is None:
                return
            with logs.bound(request_id=claim.request_id, work_id=str(claim.id), fence=str(claim.fence)):
                self._run(claim, state)

    def has_work(self) -> bool:
        """Whether anything is queued that this supervisor could take; False while the database is unavailable."""
        if not self._can_take_work():
            return False
        try:
            with transaction(self._engine, read_only=True) as session:
                return self._queue.count_claimable(session, self._owner, self.devices) > 0
        except DatabaseUnavailable:
            return False

    def keep_ready(self) -> None:
        """Start a fork server again that was killed while no work was queued, and delete old files of this host."""
        self._storage.sweep(self._settings.orphan_files_s, self._settings.upload_expires_s)
        try:
            self._fork_server.restart_if_dead()
        except OSError:
            log.exception("the fork server cannot be started")

    def close(self) -> None:
        if self._has_devices:
            with contextlib.suppress(DatabaseUnavailable), transaction(self._engine) as session:
                worker_registry.release_devices(session, self._owner)
        self._renewals.shutdown()
        if self._log_publisher is not None:
            self._log_publisher.close()
        self._fork_server.close()

    def check_devices(self) -> bool:
        """Whether the devices can be used and no other supervisor has them; the first call takes seconds."""
        return self._health.check() and self._lease_devices()

    def keep_devices(self) -> None:
        """Renew the leases of the devices; to be called more often than they end, also while a child runs."""
        if self._has_devices:
            self._lease_devices()

    def _lease_devices(self) -> bool:
        if not self._health.ids:
            return True
        try:
            with transaction(self._engine) as session:
                holder = worker_registry.lease_devices(session, self._owner, self._health.ids)
        except DatabaseUnavailable:
            return False
        self._has_devices = holder is None
        self._taken = None if holder is None else f"the devices are those of {holder}: give every supervisor its own"
        return self._has_devices

    def _can_take_work(self) -> bool:
        return self.check_devices() and self._has_disk() and self._has_storage()

    def _has_disk(self) -> bool:
        """Whether enough disk is free to begin something; what runs goes on with less."""
        has_disk = self._storage.free_bytes() >= self._settings.min_free_bytes
        if has_disk != self._had_disk:
            log.warning("free disk: %s", "work is taken again" if has_disk else "too little, queued work waits")
        self._had_disk = has_disk
        return has_disk

    def _has_storage(self) -> bool:
        """Whether the object store can be used, if there is one; what runs goes on without for a while."""
        fault = self._storage.fault()
        if fault != self._storage_fault:
            log.warning("%s", "the object store serves again" if fault is None else f"{fault} Queued work waits.")
        self._storage_fault = fault
        return fault is None

    def _can_start_child(self) -> bool:
        """Whether the fork server is ready; while it is not, work is left to other supervisors."""
        try:
            self._fork_server.prepare()
        except OSError:
            log.exception("no child can be started")
            return False
        return True

    def _claim(self) -> Claim | None:
        try:
            with transaction(self._engine) as session:
                return self._queue.claim(session, self._owner, self._settings.lease_s, self.devices)
        except DatabaseUnavailable:
            log.warning("nothing claimed: the database is unavailable")
            return None  # it is looked for again

    def _run(self, claim: Claim, state: ChildState) -> None:
        """One attempt at a claimed piece of work: start the child, watch it, requeue what it did not finish."""
        log.info("attempt %d starts", claim.attempt)
        try:
            child = self._fork_server.spawn(ChildRequest(self._module, claim.id, claim.fence, claim.request_id))
        except OSError:
            log.exception("no child could be started")
            self._requeue_unfinished(claim, "child_not_started")
            return
        try:
            status = self._monitor(claim, child, state)
        except BaseException:
            child.kill()  # nobody would watch it
            raise
        finally:
            child.close()
        if self._log_publisher is not None:
            self._log_publisher.publish(claim.id, claim.fence, last=True)
        reason = state.stop_reason or _exit_reason(status)
        if self._is_host_to_blame(claim, reason):
            reason = "device_unavailable"
        log.info("child ended with %d: %s", status, reason)
        if reason != "fenced_off":
            self._requeue_unfinished(claim, reason)

    def _is_host_to_blame(self, claim: Claim, reason: str) -> bool:
        """Whether the attempt failed because of this host's devices: then it does not count, and no work is taken."""
        if reason == "finished":
            self._health.record_success()
        return reason in SUSPICIOUS and self._health.is_to_blame(claim.id, device_failed=reason == DEVICE_FAILED)

    def _monitor(self, claim: Claim, child: Child, state: ChildState) -> int:
        """Hold the lease until the child has ended; its exit status."""
        renew_at = state.renewed + self._settings.heartbeat_s
        # Sleep until the child sends a beat or ends, the lease is due or cannot be held, or a tick has passed.
        while (status := child.wait(min(TICK_S, renew_at - time.monotonic(), self._grace_left_s(state)))) is None:
            now = time.monotonic()
            if child.has_advanced():
                state.advanced = now

            # Renew the lease. The reply to a renewal is also how a cancellation or a lost claim becomes known.
            command = None
            if now >= renew_at:
                renew_at = now + self._settings.heartbeat_s  # however long this one takes
                command = self._renew_lease(claim, state)

            # Kill a child that hangs, that ignored a command, or whose lease cannot be renewed.
            if self._should_kill(state):
                log.warning("child is killed: %s", state.stop_reason)
                return child.kill()

            if self._log_publisher is not None:
                self._log_publisher.publish(claim.id, claim.fence)

            # Pass on a command, once: cancelled or fenced off by the database, or drained by a signal to this process.
            self._forward_command(child, state, command)
        return status

    def _renew_lease(self, claim: Claim, state: ChildState) -> HolderCommand | None:
        """Extend the lease, unless the database takes longer than the child may go on without it."""

        def extend() -> HolderCommand | None:
            with transaction(self._engine) as session:
                return self._queue.renew_lease(session, claim.id, claim.fence, self._settings.lease_s)

        requested = time.monotonic()
        try:
            command = self._renewals.submit(extend).result(max(0.0, self._grace_left_s(state)))
        except (DatabaseUnavailable, TimeoutError):
            log.warning("lease not renewed: the database is unavailable")
            return None
        state.renewed = requested
        return command

    def _grace_left_s(self, state: ChildState) -> float:
        """How long the child may go on without a renewal."""
        return state.renewed + self._settings.database_grace_s - time.monotonic()

    def _should_kill(self, state: ChildState) -> bool:
        now = time.monotonic()
        if self._grace_left_s(state) <= 0:
            state.stop_reason = "database_unavailable"
        elif now - state.advanced > self._settings.stall_s:
            state.stop_reason = "stalled"
        else:
            return now > state.deadline
        return True

    def _forward_command(self, child: Child, state: ChildState, command: HolderCommand | None) -> None:
        if command == "fenced_off" and state.stop_reason != command:  # or finished by the child, which is about to end
            state.stop_reason, state.deadline = command, time.monotonic() + FENCED_GRACE_S
            child.send("cancel")
        elif state.stop_reason is None and command == "cancel":
            state.stop_reason, state.deadline = "cancelled", time.monotonic() + self._settings.cancel_grace_s
            child.send("cancel")
        elif state.stop_reason is None and self.draining.is_set():
            state.stop_reason, state.deadline = "drained", time.monotonic() + self._settings.drain_s
            child.send("drain")

    def _requeue_unfinished(self, claim: Claim, reason: str) -> None:
        """Requeue the work unless the child finished it; without a database that is left to the dispatcher."""
        limit = self._settings.max_attempts_without_progress
        for _ in range(REQUEUE_TRIES):
            try:
                with transaction(self._engine) as session:
                    new_state = self._queue.requeue(
                        session, claim.id, claim.fence, counts=reason not in UNCOUNTED, limit=limit, reason=reason
                    )
            except DatabaseUnavailable:
                log.warning("not requeued: the database is unavailable")
                self.draining.wait(TICK_S)
            else:
                if new_state is not None:
                    log.info("now %s: %s", new_state.value, reason)
                return


def _exit_reason(status: int) -> str:
    if status < 0:
        log.warning("child was killed by %s", signal.Signals(-status).name)
        return "child_killed"
    return {
        control_channel.FINISHED: "finished",
        control_channel.FENCED_OFF: "fenced_off",
        control_channel.DEVICE_FAILED: DEVICE_FAILED,
        control_channel.OUT_OF_MEMORY: "out_of_memory",
        control_channel.STORAGE_UNAVAILABLE: STORAGE_UNAVAILABLE,
        control_channel.DRAINED: "drained",
        control_channel.STOPPED: "cancelled",
        control_channel.DATABASE_UNAVAILABLE: "database_unavailable",
    }.get(status, "child_failed")
