"""The runbook and the alert rules name what the service has: its metrics, checks, problems and failures of jobs."""

from __future__ import annotations

import re
from pathlib import Path

from app import errors, work
from app.db.tables import Job
from app.errors import Problem
from app.worker_registry import ROLES
from tests import published_metrics
from worker.children import failures

DOCS = Path(__file__).parents[2] / "docs"
RULES = (DOCS / "prometheus-rules.yml").read_text()
RUNBOOK = (DOCS / "howto/runbook.md").read_text()


def test_every_metric_of_the_rules_and_each_of_its_labels_exists(tmp_path: Path) -> None:
    assert len(published_metrics.used(RULES)) >= 10
    published_metrics.check(published_metrics.published(tmp_path), RULES)


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
