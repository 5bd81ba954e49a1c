"""Which processes are running, on all hosts together, by their heartbeat rows; and which of them has which GPU.

Heartbeats are written and their ages are measured by the database's clock, so the clocks of hosts may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.db.clock import now
from app.db.tables import FAULT_LENGTH, DeviceLease, Worker
from app.notifier import QueueName

HEARTBEAT_TIMEOUT_S = 30.0  # a process counts as ended after this; DENLL_WORKER_HEARTBEAT_S is 5 s, at most 10 s
Kind = Literal["supervisor", "inference", "dispatcher"]
Role = Literal["supervisor", "ingestion", "inference", "dispatcher"]  # as clients see it
ROLES: tuple[Role, ...] = ("supervisor", "ingestion", "inference", "dispatcher")
TRAINING_SUPERVISOR = (Worker.kind == "supervisor", Worker.devices > 0)  # other supervisors check data sets


class HostFacts(NamedTuple):
    """What a supervisor says of its host, which the cost of a training depends on.

    Attributes:
        memory_bytes: Of the host, or of its container if that is limited to less.
        cpus: Threads that a training uses.
        bf16: The CPU's instructions for bf16: amx, avx512, or None.
    """

    memory_bytes: int
    cpus: int
    bf16: str | None


class ProcessStatus(NamedTuple):
    """One process, as of its last heartbeat."""

    role: str
    device: str | None
    devices: int  # offered to one job
    fault: str | None  # why it can do no work
    age_s: float  # of the heartbeat


def record_heartbeat(
    session: Session,
    name: str,
    kind: Kind,
    device: str | None,
    *,
    devices: int,
    draining: bool,
    fault: str | None = None,
    host: HostFacts | None = None,
) -> None:
    """Write the heartbeat of the process `name`: its row is inserted or brought up to date.

    Args:
        kind: What kind of process it is.
        device: The first device that the process computes on, None where it computes nothing.
        devices: How many devices it offers to one job.
        draining: Whether it is about to end and takes no more work.
        fault: Why it can do no work, such as a GPU that cannot be used; None if it can.
        host: Facts of its host; None where nothing depends on them.
    """
    values = {"draining": draining, "fault": fault and fault[:FAULT_LENGTH], "heartbeat_at": now()}
    of_host = None if host is None else host._asdict()
    updated = session.execute(update(Worker).where(Worker.id == name).values(**values))
    if updated.rowcount == 0:  # type: ignore[attr-defined]
        session.execute(
            insert(Worker).values(id=name, kind=kind, device=device, devices=devices, host=of_host, **values)
        )


def remove(session: Session, name: str) -> None:
    """Delete the heartbeat row of a process that ends."""
    session.execute(delete(Worker).where(Worker.id == name))


def lease_devices(session: Session, owner: str, devices: Sequence[str]) -> str | None:
    """Take GPUs for `HEARTBEAT_TIMEOUT_S`, or hold them for so long again; none of them if another has one.

    Args:
        owner: Name of the supervisor.
        devices: What identifies each GPU on all hosts.

    Returns:
        The name of another supervisor that holds one of them; None once the caller holds all.
    """
    expires_at = now(HEARTBEAT_TIMEOUT_S)
    own = (DeviceLease.device.in_(devices), DeviceLease.owner == owner)
    renewed = session.execute(update(DeviceLease).where(*own).values(expires_at=expires_at))
    if renewed.rowcount == len(devices):  # type: ignore[attr-defined]
        return None
    held = (DeviceLease.device.in_(devices), DeviceLease.owner != owner, DeviceLease.expires_at >= now())
    holder = session.scalar(select(DeviceLease.owner).where(*held).limit(1))
    if holder is not None:
        return holder
    own_or_expired = or_(DeviceLease.owner == owner, DeviceLease.expires_at < now())
    session.execute(delete(DeviceLease).where(DeviceLease.device.in_(devices), own_or_expired))
    rows = [{"device": device, "owner": owner, "expires_at": expires_at} for device in devices]
    try:
        with session.begin_nested():
            session.execute(insert(DeviceLease).values(rows))
    except IntegrityError:
        return "another supervisor, which was faster"
    return None


def release_devices(session: Session, owner: str) -> None:
    """Give up the GPUs of a supervisor that ends."""
    session.execute(delete(DeviceLease).where(DeviceLease.owner == owner))


def is_alive(session: Session, host: str) -> bool:
    """Whether a process whose name starts with this host name has written its heartbeat in time, without a fault."""
    on_host = Worker.id.startswith(f"{host}:", autoescape=True)
    return bool(session.scalar(select(exists().where(on_host, Worker.fault.is_(None), _recent()))))


def is_any_alive(session: Session) -> bool:
    """Whether any process has written its heartbeat in time."""
    return bool(session.scalar(select(exists().where(_recent()))))


def list_processes(session: Session) -> list[ProcessStatus]:
    """Every process that is not draining, ordered by role, the youngest heartbeat of a role first."""
    rows = session.execute(
        select(Worker.kind, Worker.device, Worker.devices, Worker.fault, Worker.heartbeat_at, now().label("at"))
        .where(Worker.draining.is_(False))
        .order_by(Worker.heartbeat_at.desc())
    )
    processes = [
        ProcessStatus(
            role="ingestion" if kind == "supervisor" and not devices else kind,
            device=device,
            devices=devices,
            fault=fault,
            age_s=max(0.0, (at - heartbeat_at).total_seconds()),
        )
        for kind, device, devices, fault, heartbeat_at, at in rows
    ]
    return sorted(processes, key=lambda process: process.role)


def count_supervisors(session: Session, queue: QueueName) -> int:
    """How many supervisors receive the notifications of a queue."""
    of_queue = Worker.devices > 0 if queue == "jobs" else Worker.devices == 0
    return session.scalar(select(func.count()).where(Worker.kind == "supervisor", of_queue, _recent())) or 0


def max_devices(session: Session) -> int | None:
    """The most devices that a running supervisor offers to one job; None while no supervisor runs.

    A draining supervisor counts, because it is most likely being restarted.
    """
    return session.scalar(select(func.max(Worker.devices)).where(*TRAINING_SUPERVISOR, _recent()))


def training_device(session: Session) -> str:
    """The device that jobs are trained on: a CUDA device when any supervisor has one, or else `cpu`."""
    devices = session.scalars(select(Worker.device).where(*TRAINING_SUPERVISOR).distinct())
    return max((device or "cpu" for device in devices), default="cpu")  # "cpu" < "cuda"


def training_hosts(session: Session, device: str) -> list[HostFacts]:
    """Facts of the hosts whose supervisors train on a device of this kind; draining ones count, they come back."""
    is_cuda = Worker.device.startswith("cuda")
    statement = select(Worker.host).where(
        *TRAINING_SUPERVISOR, _recent(), is_cuda if device.startswith("cuda") else ~is_cuda
    )
    return [HostFacts(**host) for host in session.scalars(statement) if host]


def _recent() -> ColumnElement[bool]:
    return Worker.heartbeat_at > now(-HEARTBEAT_TIMEOUT_S)
