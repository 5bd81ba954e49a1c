"""/livez, /readyz, /version and /metrics. Which dependencies the service cannot work without is decided here."""

from __future__ import annotations

import itertools
import time
from typing import Any, Literal

from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app import version, worker_registry
from app.db import schema
from app.db import session as db
from app.db.tables import Dataset, Job, Model
from app.errors import DatabaseUnavailable
from app.http import metrics, problems
from app.http.access import OPEN, READ
from app.http.metrics import Metric
from app.http.routing import Router
from app.settings import Settings
from app.shared_storage import SharedStorage

router = Router(tags=["service"])


class Check(BaseModel):
    """The state of one dependency; fields that do not apply to it are left out."""

    status: Literal["ok", "degraded", "unavailable"]
    detail: str | None = None
    heartbeat_age_seconds: float | None = None
    device: str | None = None
    devices: int | None = Field(default=None, description="Devices of running processes of this kind, on all hosts")
    running: int | None = Field(default=None, description="Processes of this kind without a fault, on all hosts")
    faults: int | None = Field(
        default=None, description="Processes of this kind with a fault; `detail` says which fault one of them has"
    )
    free_bytes: int | None = None


class Readiness(BaseModel):
    status: Literal["ok", "degraded"]
    checks: dict[str, Check]


class Liveness(BaseModel):
    status: Literal["ok"]


class Version(BaseModel):
    version: str
    schema_revision: str


@router.get("/livez", dependencies=[OPEN], response_model=Liveness)
async def livez() -> Response:
    """Whether the process responds. No dependency is checked."""
    return JSONResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})


@router.get("/version", dependencies=[READ], response_model=Version)
async def get_version() -> Version:
    """The version of the service, and the schema that its database must have."""
    return Version(version=version.current(), schema_revision=schema.REVISION)


@router.get("/readyz", dependencies=[OPEN], response_model=Readiness)
async def readyz(request: Request) -> Response:
    """The state of every dependency. `degraded`: the service responds, but some work waits, for example for a worker.
    Without the database the response is a 503."""
    checks = await run_in_threadpool(check, request.app.state)
    details = {name: c.model_dump(mode="json", exclude_none=True) for name, c in checks.items()}
    worst = {c.status for c in checks.values()}
    if "unavailable" in worst:
        missing = ", ".join(name for name, c in checks.items() if c.status == "unavailable")
        problem = DatabaseUnavailable(f"Not ready: {missing}.", code="not_ready", retry_after_s=db.UNAVAILABLE_RETRY_S)
        return problems.respond(request, problem, checks=details)
    status = "degraded" if "degraded" in worst else "ok"
    return JSONResponse({"status": status, "checks": details}, headers={"Cache-Control": "no-store"})


def check(state: Any) -> dict[str, Check]:
    """The state of every dependency by name; each check ends within the time limit of its connection."""
    checks: dict[str, Check] = {}
    try:
        with db.transaction(state.engine, read_only=True) as session:
            workers = heartbeats(session)
        checks["database"] = Check(status="ok")
        for role in worker_registry.ROLES:
            checks[role] = workers.get(role, Check(status="degraded", detail="none is running"))
    except DatabaseUnavailable as error:
        checks["database"] = Check(status="unavailable", detail=error.detail)
    reachable = state.notifier.is_reachable()
    checks["broker"] = (
        Check(status="ok") if reachable else Check(status="degraded", detail="work starts when it is back")
    )
    if isinstance(state.storage, SharedStorage):
        fault = state.storage.fault()
        detail = None if fault is None else f"{fault} Data sets cannot be read, and work waits."
        checks["storage"] = Check(status="ok" if fault is None else "degraded", detail=detail)
    checks["disk"] = check_disk(state.storage.free_bytes(), state.settings)
    return checks


def check_disk(free: int, settings: Settings) -> Check:
    """The state of the data folder's disk with so many free bytes."""
    if free < settings.min_free_bytes:
        detail = f"uploads are refused and queued work waits below {settings.min_free_bytes} free bytes"
    elif free < settings.warn_free_bytes:
        detail = f"below {settings.min_free_bytes} free bytes uploads are refused and queued work waits"
    else:
        detail = None
    return Check(status="ok" if detail is None else "degraded", free_bytes=free, detail=detail)


def heartbeats(session: Session) -> dict[str, Check]:
    """For each role of a process its youngest heartbeat, how many processes run, and the fault of one that has any."""
    checks: dict[str, Check] = {}
    processes = worker_registry.list_processes(session)
    for role, group in itertools.groupby(processes, key=lambda process: process.role):
        youngest, *others = group
        alive = [p for p in (youngest, *others) if p.age_s <= worker_registry.HEARTBEAT_TIMEOUT_S]
        running = [p for p in alive if p.fault is None]
        faults = [p.fault for p in alive if p.fault is not None]
        detail = next(iter(faults), None if running else "no recent heartbeat")
        checks[role] = Check(
            status="ok" if detail is None else "degraded",
            detail=detail,
            heartbeat_age_seconds=round(youngest.age_s, 1),
            device=youngest.device,
            devices=sum(process.devices for process in running) if role == "supervisor" else None,
            running=len(running),
            faults=len(faults),
        )
    return checks


@router.get(
    "/metrics",
    dependencies=[READ],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def prometheus(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format."""
    state = request.app.state
    gauges = [
        Metric("denll_build_info", "gauge", "Version of the service", [({"version": version.current()}, 1.0)]),
        Metric("denll_up_seconds", "gauge", "Age of this process", [({}, time.monotonic() - state.started_at)]),
        Metric("denll_disk_free_bytes", "gauge", "Free disk below the data folder", [({}, state.storage.free_bytes())]),
        Metric(
            "denll_disk_limit_bytes",
            "gauge",
            "Free disk below which the service warns, and stops taking work",
            [({"level": "warn"}, state.settings.warn_free_bytes), ({"level": "stop"}, state.settings.min_free_bytes)],
        ),
    ]
    try:
        with db.transaction(state.engine, read_only=True) as session:
            gauges += [
                *database_gauges(session),
                Metric("denll_database_up", "gauge", "Database reachable", [({}, 1.0)]),
            ]
    except DatabaseUnavailable:
        gauges.append(Metric("denll_database_up", "gauge", "Database reachable", [({}, 0.0)]))
    text = metrics.render([*state.request_metrics.metrics(), *gauges])
    return Response(text, media_type=metrics.MEDIA_TYPE, headers={"Cache-Control": "no-store"})


def database_gauges(session: Session) -> list[Metric]:
    """Gauges that are read from the database."""

    def by_state(table: type[Job] | type[Dataset]) -> list[tuple[dict[str, str], float]]:
        rows = session.execute(select(table.state, func.count()).group_by(table.state))
        return [({"state": state.value}, float(n)) for state, n in rows]

    models = float(session.scalar(select(func.count()).select_from(Model)) or 0)
    checks = heartbeats(session)
    ages = [({"kind": kind}, check.heartbeat_age_seconds or 0.0) for kind, check in checks.items()]
    faults = [({"kind": kind}, float(check.faults or 0)) for kind, check in checks.items()]
    return [
        Metric("denll_jobs", "gauge", "Jobs by state", by_state(Job)),
        Metric("denll_datasets", "gauge", "Data sets by state", by_state(Dataset)),
        Metric("denll_models", "gauge", "Published models", [({}, models)]),
        Metric("denll_worker_heartbeat_age_seconds", "gauge", "Age of the youngest heartbeat, by kind", ages),
        Metric("denll_worker_faults", "gauge", "Processes that cannot work, as with a GPU that is lost", faults),
    ]
