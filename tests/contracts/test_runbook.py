"""The runbook and the alert rules name what the service has: its metrics, checks, problems and failures of jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app import errors, work
from app.db import session as db
from app.db.tables import Dataset, Job, State, Worker
from app.errors import Problem
from app.main import create_app
from app.settings import Settings
from app.worker_registry import ROLES
from tests.tables import create_tables
from worker.children import failures

DOCS = Path(__file__).parents[2] / "docs"
RULES = (DOCS / "prometheus-rules.yml").read_text()
RUNBOOK = (DOCS / "howto/runbook.md").read_text()


@pytest.fixture
def metrics(tmp_path: Path) -> str:
    """What /metrics says of a service with every process and with work in every state."""
    settings = Settings(data_dir=tmp_path, redis_url="redis://127.0.0.1:1/0", connect_timeout_s=0.5)
    engine = db.connect(settings)
    create_tables(engine)
    with db.transaction(engine) as session:
        for state in State:
            session.add(Dataset(name="d", upload={}, state=state))
            session.add(Job(state=state, request={}, spec={}))
        for kind in ("supervisor", "inference", "dispatcher"):
            session.add(Worker(id=kind, kind=kind, devices=int(kind == "supervisor")))
        session.add(Worker(id="ingestion", kind="supervisor"))
    engine.dispose()
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000") as client:
        client.get("/predict")
        return client.get("/metrics").text


def test_every_metric_of_the_rules_and_each_of_its_labels_exists(metrics: str) -> None:
    series = re.findall(r"^(denll_\w+)(?:\{(.*)\})? ", metrics, re.MULTILINE)
    used = re.findall(r"\b(denll_\w+)(?:\{([^}]*)\})?", RULES)

    assert len(used) >= 10
    for name, selector in used:
        for label, value in re.findall(r'(\w+)="([^"]*)"', selector) or [("", "")]:
            values = {text for metric, labels in series if metric == name for text in [f",{labels}"]}
            assert values, name
            if label and label != "status":  # which depends on the requests so far
                assert any(f',{label}="{value}"' in text for text in values), (name, label, value)


def test_the_runbook_explains_every_alert_and_no_other() -> None:
    assert set(re.findall(r"alert: (\w+)", RULES)) == set(re.findall(r"\bDenll\w+", RUNBOOK))


def test_the_runbook_explains_every_check() -> None:
    for check in ("database", "broker", "disk", *ROLES):
        assert re.search(rf"^\| `{check}` \|", RUNBOOK, re.MULTILINE), check


def test_the_runbook_explains_every_server_error_and_names_no_unknown_problem() -> None:
    classes = [one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Problem)]
    names = {errors.type_of(errors.snake(one.__name__)).rpartition("/")[2]: one.status for one in classes}
    table = RUNBOOK.partition("## Problems")[2].partition("## A job")[0]
    explained = {
        name
        for row in re.findall(r"^\| (`[a-z`, -]+`) \|", table, re.MULTILINE)
        for name in row.strip("`").split("`, `")
    }

    assert {name for name, status in names.items() if status > 500} <= explained
    assert explained <= {*names, "not-ready"}


def test_the_runbook_explains_every_failure_of_a_job() -> None:
    rows = RUNBOOK.partition("| code |")[2]
    for code in (*failures.TITLES, work.POISON[Job]["code"]):
        assert f"`{code}`" in rows, code
