"""What an attempt at a job writes to the database, shared by supervisor, child and dispatcher.

Every function that takes `fence` writes only while the claim with this fence still holds; otherwise it changes nothing
and returns False or None. The caller commits. Events are written in the same transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, case, insert, or_, select, update
from sqlalchemy.orm import Session

from app import work, worker_registry
from app.db.tables import Epoch, Job, Model, State, Worker
from app.jobs import events
from app.models import following
from app.work import Claim, HolderCommand


def claim(session: Session, owner: str, lease_s: float, devices: int = 1) -> Claim | None:
    """Claim the next queued job that a supervisor with this many devices can run; None when there is none.

    Args:
        owner: Name of the supervisor in the worker registry.
        lease_s: Seconds until the claim ends unless it is renewed.
        devices: How many devices the supervisor offers to one job.
    """
    claimed = work.claim_next(session, Job, owner, lease_s, *_claimable_by(owner, devices))
    if claimed:
        events.record_state(session, claimed.id, State.running, attempt=claimed.attempt)
    return claimed


def count_claimable(session: Session, owner: str, devices: int = 1) -> int:
    """How many queued jobs `claim` could claim with the same arguments."""
    return work.count_queued(session, Job, *_claimable_by(owner, devices))


def _claimable_by(owner: str, devices: int) -> tuple[ColumnElement[bool], ...]:
    """Jobs that need no more devices than offered; those that require a GPU wait for a supervisor that has one."""
    can_run_on_gpu = (
        *worker_registry.TRAINING_SUPERVISOR,
        Worker.device.startswith("cuda"),
        Worker.devices >= Job.gpus,
    )
    gpu_supervisors = select(Worker.id).where(*can_run_on_gpu).correlate(Job)
    needs_no_gpu = Job.spec["device"].as_string().is_distinct_from("cuda")
    is_gpu_supervisor = gpu_supervisors.where(Worker.id == owner).exists()
    # Without any GPU supervisor a job that requires a GPU goes to any supervisor, and fails there with a clear error.
    return Job.gpus <= devices, or_(needs_no_gpu, is_gpu_supervisor, ~gpu_supervisors.exists())


def renew_lease(session: Session, job_id: uuid.UUID, fence: int, lease_s: float) -> HolderCommand | None:
    """Extend the lease to `lease_s` seconds from now; returns what `read_command` does."""
    return work.renew_lease(session, Job, job_id, fence, lease_s)


def read_command(session: Session, job_id: uuid.UUID, fence: int) -> HolderCommand | None:
    """What the attempt must do: stop ("cancel", "fenced_off"), or None to go on."""
    return work.read_command(session, Job, job_id, fence)


def report_progress(session: Session, job_id: uuid.UUID, fence: int, progress: Mapping[str, Any]) -> bool:
    """Replace the job's `progress`; its fields are those that `GET /jobs/{id}` describes."""
    if not work.update_claimed(session, Job, job_id, fence, {"progress": dict(progress)}):
        return False
    events.append(session, job_id, "progress", progress)
    return True


def record_epochs(session: Session, job_id: uuid.UUID, fence: int, reports: Sequence[Mapping[str, Any]]) -> bool:
    """Store epoch reports, each with its number, from 1, as `epoch`.

    A report of an epoch that is stored already (after a resume) replaces the stored one and makes no second event.
    """
    if not _lock(session, job_id, fence):
        return False
    latest = {int(report["epoch"]): dict(report) for report in reports}
    stored = set(
        session.scalars(select(Epoch.number).where(Epoch.job_id == job_id, Epoch.number.in_(list(latest)))).all()
    )
    for number in stored:
        session.execute(
            update(Epoch).where(Epoch.job_id == job_id, Epoch.number == number).values(report=latest[number])
        )
    fresh = [number for number in sorted(latest) if number not in stored]
    if fresh:
        session.execute(insert(Epoch), [{"job_id": job_id, "number": n, "report": latest[n]} for n in fresh])
    for number in fresh:
        events.append(session, job_id, "metric", latest[number])
    return True


def report_metrics(session: Session, job_id: uuid.UUID, fence: int, metrics: Mapping[str, Any]) -> bool:
    """Store what is known before the job ends; its final metrics replace it."""
    return work.update_claimed(session, Job, job_id, fence, {"metrics": dict(metrics)})


def append_log(session: Session, job_id: uuid.UUID, fence: int, level: str, message: str) -> bool:
    """Add a `log` event: `level` is info, warning or error, `message` a sentence for the user."""
    if not _lock(session, job_id, fence):
        return False
    events.append(session, job_id, "log", {"level": level, "message": message})
    return True


def record_checkpoint(session: Session, job_id: uuid.UUID, fence: int, step: int, path: str) -> bool:
    """Record a checkpoint that is complete on disk.

    Args:
        step: Training steps done. More than at any checkpoint before resets the count of attempts without progress.
        path: The checkpoint's folder, relative to the job's folder.
    """
    newer = or_(Job.checkpoint_step.is_(None), Job.checkpoint_step < step)
    return work.update_claimed(
        session,
        Job,
        job_id,
        fence,
        {
            "attempts_without_progress": case((newer, 0), else_=Job.attempts_without_progress),
            "checkpoint_step": step,
            "checkpoint_path": path,
        },
    )


def publish(
    session: Session, job_id: uuid.UUID, fence: int, *, metrics: Mapping[str, Any], model: Mapping[str, Any]
) -> bool:
    """End the job with a model, in one transaction: the model's row exists once the job has succeeded (INV3, INV4).

    Args:
        metrics: The job's final metrics, as strict JSON.
        model: Columns of the row in `model`, without `job_id`.
    """
    if not _succeed(session, job_id, fence, metrics):
        return False
    is_baseline = session.scalar(select(Job.compared_with_id).where(Job.id == job_id)) is not None
    verdict = following.judge(session, model, is_baseline=is_baseline)
    columns = {"moved_default": verdict.moves, "default_reason": verdict.reason}
    session.execute(insert(Model).values(job_id=job_id, **model, **columns))
    moved = "moved to" if verdict.moves else "not moved to"
    message = f"The alias default was {moved} this model: {verdict.reason}."
    events.append(session, job_id, "log", {"level": "info", "message": message})
    events.record_state(session, job_id, State.succeeded, model_id=str(model["id"]))
    return True


def succeed(session: Session, job_id: uuid.UUID, fence: int, *, metrics: Mapping[str, Any]) -> bool:
    """End a job that has no model (`predict`); `metrics` are its final metrics, as strict JSON."""
    if not _succeed(session, job_id, fence, metrics):
        return False
    events.record_state(session, job_id, State.succeeded)
    return True


def fail(session: Session, job_id: uuid.UUID, fence: int, error: Mapping[str, str]) -> bool:
    """End the job with an error: code, title, detail, and a hint that a user can act on."""
    if not work.finish(session, Job, job_id, fence, State.failed, error=dict(error)):
        return False
    events.record_state(session, job_id, State.failed, reason=error["code"], detail=error["detail"])
    return True


def requeue(session: Session, job_id: uuid.UUID, fence: int, *, counts: bool, limit: int, reason: str) -> State | None:
    """End the attempt without a result; `counts` and `limit` as in `work.requeue`.

    Args:
        reason: Why the attempt ended, such as `child_killed` or `drained`; clients see it in the `status` event.

    Returns:
        The job's new state (queued, failed or cancelled), or None when the claim is lost.
    """
    state = work.requeue(session, Job, job_id, fence, counts=counts, limit=limit)
    if state is not None:
        events.record_state(session, job_id, state, reason=reason)
    return state


def reap(session: Session, limit: int) -> int:
    """Requeue every job whose lease has expired; how many. `limit` as in `work.requeue`."""
    reaped = work.reap(session, Job, limit)
    for job_id, state, attempt in reaped:
        events.record_state(session, job_id, state, reason="lease_expired", attempt=attempt)
    return len(reaped)


def _lock(session: Session, job_id: uuid.UUID, fence: int) -> bool:
    """Lock the claimed row, so that later statements of this transaction are fenced and their events are in order."""
    return work.update_claimed(session, Job, job_id, fence, {"fence": fence})


def _succeed(session: Session, job_id: uuid.UUID, fence: int, metrics: Mapping[str, Any]) -> bool:
    return work.finish(session, Job, job_id, fence, State.succeeded, metrics=dict(metrics), error=None)
