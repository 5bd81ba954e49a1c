"""What an attempt at a job may write. Every effect is guarded by its fence: when the claim is lost, nothing happens
and the answer is False.

Supervisor, child and dispatcher share this page; none of them decides by itself what a state means. Nothing here knows
how a job is done.
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
from app.work import Claim, Order


def claim(session: Session, owner: str, lease_s: float, devices: int = 1) -> Claim | None:
    """Take the next queued job for a supervisor with this many devices. The caller commits at once."""
    claimed = work.claim_next(session, Job, owner, lease_s, *_fitting(owner, devices))
    if claimed:
        events.changed(session, claimed.id, State.running, attempt=claimed.attempt)
    return claimed


def waiting(session: Session, owner: str, devices: int = 1) -> int:
    """How many queued jobs a supervisor with this many devices could take."""
    return work.queued(session, Job, *_fitting(owner, devices))


def _fitting(owner: str, devices: int) -> tuple[ColumnElement[bool], ...]:
    """Jobs for this supervisor: its devices are enough, and one that needs a GPU is not better left to another."""
    with_gpus = (*worker_registry.TRAINS, Worker.device.startswith("cuda"), Worker.devices >= Job.gpus)
    on_gpus = select(Worker.id).where(*with_gpus).correlate(Job)
    needs_none = Job.spec["device"].as_string().is_distinct_from("cuda")
    return Job.gpus <= devices, or_(needs_none, on_gpus.where(Worker.id == owner).exists(), ~on_gpus.exists())


def heartbeat(session: Session, job_id: uuid.UUID, fence: int, lease_s: float) -> Order | None:
    """Renew the lease, and hear what the holder should do."""
    work.heartbeat(session, Job, job_id, fence, lease_s)
    return order(session, job_id, fence)


def order(session: Session, job_id: uuid.UUID, fence: int) -> Order | None:
    """What the attempt should do other than go on."""
    return work.order(session, Job, job_id, fence)


def report_progress(session: Session, job_id: uuid.UUID, fence: int, progress: Mapping[str, Any]) -> bool:
    """Replace what `GET /jobs/{id}` shows as progress, and tell those who follow the job."""
    if not work.write(session, Job, job_id, fence, {"progress": dict(progress)}):
        return False
    events.append(session, job_id, "progress", progress)
    return True


def record_epochs(session: Session, job_id: uuid.UUID, fence: int, reports: Sequence[Mapping[str, Any]]) -> bool:
    """Store epoch reports, each with its `epoch`; one seen before (after a resume) is replaced and not told again."""
    if not _touch(session, job_id, fence):
        return False
    latest = {int(report["epoch"]): dict(report) for report in reports}
    known = set(
        session.scalars(select(Epoch.number).where(Epoch.job_id == job_id, Epoch.number.in_(list(latest)))).all()
    )
    for number in known:
        session.execute(
            update(Epoch).where(Epoch.job_id == job_id, Epoch.number == number).values(report=latest[number])
        )
    fresh = [number for number in sorted(latest) if number not in known]
    if fresh:
        session.execute(insert(Epoch), [{"job_id": job_id, "number": n, "report": latest[n]} for n in fresh])
    for number in fresh:
        events.append(session, job_id, "metric", latest[number])
    return True


def log(session: Session, job_id: uuid.UUID, fence: int, level: str, message: str) -> bool:
    """Tell those who follow the job something worth a sentence."""
    if not _touch(session, job_id, fence):
        return False
    events.append(session, job_id, "log", {"level": level, "message": message})
    return True


def checkpointed(session: Session, job_id: uuid.UUID, fence: int, step: int, path: str) -> bool:
    """Point at a checkpoint that is complete on disk. Only a newer one than ever before counts as progress."""
    newer = or_(Job.checkpoint_step.is_(None), Job.checkpoint_step < step)
    return work.write(
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
    """Succeed with a model: the row that makes it visible and the end of the job are one transaction (INV3, INV4)."""
    if not _succeed(session, job_id, fence, metrics):
        return False
    session.execute(insert(Model).values(job_id=job_id, **model))
    events.changed(session, job_id, State.succeeded, model_id=str(model["id"]))
    return True


def succeed(session: Session, job_id: uuid.UUID, fence: int, *, metrics: Mapping[str, Any]) -> bool:
    """Succeed without a model (a `predict` job)."""
    if not _succeed(session, job_id, fence, metrics):
        return False
    events.changed(session, job_id, State.succeeded)
    return True


def fail(session: Session, job_id: uuid.UUID, fence: int, error: Mapping[str, str]) -> bool:
    """Fail for good: `error` has code, title, detail and hint, in words a user can act on."""
    if not work.settle(session, Job, job_id, fence, State.failed, error=dict(error)):
        return False
    events.changed(session, job_id, State.failed, reason=error["code"], detail=error["detail"])
    return True


def put_back(session: Session, job_id: uuid.UUID, fence: int, *, counts: bool, limit: int, reason: str) -> State | None:
    """End the attempt, not the job: queued again, unless cancelled or failed too often; None when the claim is lost."""
    state = work.put_back(session, Job, job_id, fence, counts=counts, limit=limit)
    if state is not None:
        events.changed(session, job_id, state, reason=reason)
    return state


def reap(session: Session, limit: int) -> int:
    """Put back every job whose worker stopped renewing its lease."""
    reaped = work.reap(session, Job, limit)
    for job_id, state, attempt in reaped:
        events.changed(session, job_id, state, reason="lease_expired", attempt=attempt)
    return len(reaped)


def _touch(session: Session, job_id: uuid.UUID, fence: int) -> bool:
    """Lock the row we hold, so that what follows in this transaction is fenced and in order."""
    return work.write(session, Job, job_id, fence, {"fence": fence})


def _succeed(session: Session, job_id: uuid.UUID, fence: int, metrics: Mapping[str, Any]) -> bool:
    return work.settle(session, Job, job_id, fence, State.succeeded, metrics=dict(metrics), error=None)
