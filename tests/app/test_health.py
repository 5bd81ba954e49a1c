"""Liveness touches nothing; readiness says what is missing; metrics are Prometheus'."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from app.db import schema
from app.db import session as db
from app.db.clock import now
from app.db.tables import Worker
from app.http import metrics
from app.http.metrics import Metric
from tests.app.conftest import BOTH, Client
from tests.tables import record_revision


@BOTH
def test_readiness_lists_what_is_missing(client: Client) -> None:
    body = client.get("/readyz").json()
    assert body["status"] == "degraded"
    assert {name: check["status"] for name, check in body["checks"].items()} == {
        "database": "ok",
        "supervisor": "degraded",
        "ingestion": "degraded",
        "inference": "degraded",
        "dispatcher": "degraded",
        "broker": "degraded",
        "disk": "ok",
    }
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add(Worker(id="s", kind="supervisor", device="cpu", devices=1))
    seen = client.get("/readyz").json()["checks"]["supervisor"]
    assert (seen["status"], seen["device"]) == ("ok", "cpu")
    assert seen["heartbeat_age_seconds"] < 10


@pytest.mark.parametrize(
    ("warn", "stop", "status", "says"),
    [(1, 0, "ok", None), (2**62, 0, "degraded", "below 0 free bytes"), (2**62, 2**61, "degraded", "queued work waits")],
)
def test_DEG5_little_disk_is_told_before_it_stops_anything(
    with_settings: Callable[..., Client], warn: int, stop: int, status: str, says: str | None
) -> None:
    client = with_settings(warn_free_bytes=warn, min_free_bytes=stop)
    disk = client.get("/readyz").json()["checks"]["disk"]
    assert disk["status"] == status
    assert disk["free_bytes"] > 0
    assert says is None or says in disk["detail"]
    lines = client.get("/metrics").text.splitlines()
    for level, limit in (("warn", warn), ("stop", stop)):
        assert f'denll_disk_limit_bytes{{level="{level}"}} {limit:g}' in lines


@BOTH
def test_readiness_speaks_of_all_hosts(client: Client) -> None:
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add_all(
            [
                Worker(id="a", kind="supervisor", device="cuda", devices=1),
                Worker(id="b", kind="supervisor", device="cuda:0", devices=2),
                Worker(id="dead", kind="supervisor", device="cuda", devices=4, heartbeat_at=now(-100.0)),
                Worker(id="c", kind="supervisor", heartbeat_at=now(-100.0)),
            ]
        )
    checks = client.get("/readyz").json()["checks"]
    supervisor, ingest = checks["supervisor"], checks["ingestion"]
    assert (supervisor["status"], supervisor["running"], supervisor["devices"]) == ("ok", 2, 3)
    assert (ingest["status"], ingest["running"]) == ("degraded", 0)
    assert ingest["heartbeat_age_seconds"] >= 100


@BOTH
def test_F27_readiness_says_why_a_host_takes_no_work(client: Client) -> None:
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add_all(
            [
                Worker(id="a", kind="supervisor", device="cuda", devices=1, fault="the driver is too old"),
                Worker(id="b", kind="supervisor", device="cuda", devices=2),
            ]
        )
    body = client.get("/readyz").json()
    supervisor = body["checks"]["supervisor"]

    assert (body["status"], supervisor["status"]) == ("degraded", "degraded")
    assert supervisor["detail"] == "the driver is too old"
    assert (supervisor["running"], supervisor["devices"], supervisor["faults"]) == (1, 2, 1)
    assert 'denll_worker_faults{kind="supervisor"} 1' in client.get("/metrics").text


@pytest.mark.alone
def test_F09_DEG1_DEG3_without_a_database_we_live_but_are_not_ready(with_settings: Callable[..., Client]) -> None:
    client = with_settings(database_url="postgresql://nobody@127.0.0.1:9/none", connect_timeout_s=0.5)
    started = time.monotonic()
    assert client.get("/livez").status_code == 200
    assert time.monotonic() - started < 1.0
    for path in ("/readyz", "/jobs", "/datasets/00000000-0000-4000-8000-000000000000"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
    assert client.get("/readyz").json()["checks"]["database"]["status"] == "unavailable"
    assert "denll_database_up 0" in client.get("/metrics").text
    assert time.monotonic() - started < 20


@BOTH
@pytest.mark.parametrize("revision", ["of a later version", None])
def test_F31_a_database_with_another_schema_is_left_alone_until_it_has_ours(
    client: Client, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr(schema, "CHECK_S", 0.0)
    engine = client.app.state.engine  # type: ignore[attr-defined]
    if revision is None:
        schema.VERSIONS.drop(engine)
    else:
        record_revision(engine, revision)
    ready, jobs = client.get("/readyz"), client.get("/jobs")

    assert (ready.status_code, jobs.status_code) == (503, 503)
    assert (revision or "no schema") in ready.json()["checks"]["database"]["detail"]
    assert schema.REVISION in jobs.json()["detail"]
    assert jobs.json()["type"] == "/problems/schema-mismatch"
    assert "denll_database_up 0" in client.get("/metrics").text
    assert client.get("/livez").status_code == 200

    record_revision(engine, schema.REVISION)
    assert client.get("/jobs").status_code == 200
    assert client.get("/readyz").json()["checks"]["database"] == {"status": "ok"}


@BOTH
def test_the_schema_is_looked_up_now_and_then_not_for_every_transaction(client: Client) -> None:
    client.get("/readyz")
    engine = client.app.state.engine  # type: ignore[attr-defined]
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))
    client.get("/readyz")

    assert statements
    assert not [statement for statement in statements if schema.VERSIONS.name in statement]


def test_the_version_is_that_of_the_project_wherever_it_is_told(client: Client) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    metrics = client.get("/metrics").text.splitlines()

    assert client.get("/version").json() == {"version": project["version"], "schema_revision": schema.REVISION}
    assert client.app.openapi()["info"]["version"] == project["version"]  # type: ignore[attr-defined]
    assert f'denll_build_info{{version="{project["version"]}"}} 1' in metrics


@BOTH
def test_metrics_count_requests_and_jobs(client: Client, submit: Callable[..., Any]) -> None:
    submit()
    client.get("/nowhere/at/all")
    text = client.get("/metrics").text
    assert 'denll_jobs{state="queued"} 1' in text
    assert re.search(r'denll_http_requests_total\{method="POST",route="/jobs",status="202"\} 1', text)
    assert 'route="other",status="404"' in text
    assert "nowhere" not in text


def test_labels_are_escaped() -> None:
    assert (
        metrics.render([Metric("m", "gauge", "h", [({"a": 'x"\\\n'}, 1.5)])]).splitlines()[-1]
        == 'm{a="x\\"\\\\\\n"} 1.5'
    )
