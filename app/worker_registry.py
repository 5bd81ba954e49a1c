"""Who is there: what the heartbeat rows of supervisors, inference processes and dispatchers say, on all hosts together.

Ages are by the database's clock, which wrote the heartbeats; the clocks of the hosts may differ.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import Worker
from app.notifier import Bell

SILENT_S = 30.0  # a process that says nothing for six heartbeats (three at the most) is not counted on
Kind = Literal["supervisor", "inference", "dispatcher"]
Role = Literal["supervisor", "ingestion", "inference", "dispatcher"]
ROLES: tuple[Role, ...] = ("supervisor", "ingestion", "inference", "dispatcher")
TRAINS = (Worker.kind == "supervisor", Worker.devices > 0)  # the others check data sets


class Seen(NamedTuple):
    """One process, as it was when it last said that it is there."""

    role: str
    device: str | None
    devices: int  # offered to one job
    age_s: float


def seen(session: Session) -> list[Seen]:
    """Every process that is not about to end, by role, the youngest heartbeat first."""
    rows = session.execute(
        select(Worker.kind, Worker.device, Worker.devices, Worker.seen_at, now().label("at"))
        .where(Worker.draining.is_(False))
        .order_by(Worker.seen_at.desc())
    )
    found = [
        Seen("ingestion" if kind == "supervisor" and not n else kind, device, n, max(0.0, (at - last).total_seconds()))
        for kind, device, n, last, at in rows
    ]
    return sorted(found, key=lambda one: one.role)


def listening(session: Session, bell: Bell) -> int:
    """How many supervisors there are that a bell may reach."""
    devices = Worker.devices > 0 if bell == "jobs" else Worker.devices == 0
    lively = Worker.seen_at > now(-SILENT_S)
    return session.scalar(select(func.count()).where(Worker.kind == "supervisor", devices, lively)) or 0


def most_devices(session: Session) -> int | None:
    """What the largest supervisor heard from lately offers to one job; None while none is there.

    One that drains counts: it is most likely being started anew.
    """
    return session.scalar(select(func.max(Worker.devices)).where(*TRAINS, Worker.seen_at > now(-SILENT_S)))


def training_device(session: Session) -> str:
    """What jobs are trained on: `cuda` when any supervisor has one, or else `cpu`."""
    known = session.scalars(select(Worker.device).where(*TRAINS).distinct())
    return max((device or "cpu" for device in known), default="cpu")  # "cpu" < "cuda"


def record_heartbeat(
    session: Session, name: str, kind: Kind, device: str | None, *, devices: int, draining: bool
) -> None:
    """Write the heartbeat of the process `name`: its row is inserted or brought up to date.

    Args:
        device: The first device that the process computes on, None where it computes nothing.
        devices: How many devices it offers to one job.
        draining: Whether it is about to end and takes no more work.
    """
    state = {"draining": draining, "seen_at": now()}
    updated = session.execute(update(Worker).where(Worker.id == name).values(**state))
    if updated.rowcount == 0:  # type: ignore[attr-defined]
        session.execute(insert(Worker).values(id=name, kind=kind, device=device, devices=devices, **state))


def remove(session: Session, name: str) -> None:
    """Delete the heartbeat row of a process that ends."""
    session.execute(delete(Worker).where(Worker.id == name))
