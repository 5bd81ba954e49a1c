"""What /metrics says, and which metrics and labels of an expression it does not."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi.testclient import TestClient

from app.db import session as db
from app.db.tables import Dataset, Job, State, Worker
from app.main import create_app
from app.settings import Settings
from tests.tables import create_tables


def published(folder: Path) -> str:
    """What /metrics says of a service with every process and with work in every state."""
    settings = Settings(data_dir=folder, redis_url="redis://127.0.0.1:1/0", connect_timeout_s=0.5)
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
        return str(client.get("/metrics").text)


def used(expressions: str) -> list[tuple[str, str]]:
    """The service's metrics that expressions name, each with its selector."""
    return re.findall(r"\b(denll_\w+)(?:\{([^}]*)\})?", expressions)


def check(metrics: str, expressions: str) -> None:
    """Assert that every metric of the service that the expressions name is published, with each of its labels."""
    series = re.findall(r"^(denll_\w+)(?:\{(.*)\})? ", metrics, re.MULTILINE)
    for name, selector in used(expressions):
        for label, value in re.findall(r'(\w+)="([^"]*)"', selector) or [("", "")]:
            values = {text for metric, labels in series if metric == name for text in [f",{labels}"]}
            assert values, name
            if label and label != "status":  # which depends on the requests so far
                assert any(f',{label}="{value}"' in text for text in values), (name, label, value)
