"""Two requests for the same rows at once, on Postgres, where the second one waits inside its transaction.

Each test holds the first transaction open until the request waits for it, so that the order never varies. On SQLite one
transaction writes at a time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from app.datasets import service as datasets
from app.db import session as db
from app.db.tables import ApiKey, Job, LoginSession, State
from app.jobs import service as jobs
from app.login import service as login
from app.login.service import Person
from app.models import service as models
from app.settings import Settings
from tests.app.conftest import BOTH, Client, FakeWorker
from tests.servers import eventually

POSTGRES = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
Submit = Callable[..., Any]


def during(engine: Engine, change: Callable[[Session], object], send: Callable[[], Any]) -> Any:
    """The response to a request that waits for a transaction, which is committed then."""
    with ThreadPoolExecutor(1) as pool, db.transaction(engine) as session:
        change(session)
        session.flush()
        response = pool.submit(send)
        eventually(lambda: response.done() or waits(engine), what="the request waits for the other transaction")
        assert not response.done(), response.result().text
    return response.result()


def waits(engine: Engine) -> bool:
    with db.transaction(engine, read_only=True) as session:
        return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


@pytest.fixture
def model_ids(submit: Submit, fake_worker: FakeWorker) -> list[uuid.UUID]:
    """Two models."""
    ids = []
    for _ in range(2):
        submit(method="ce", network="small")
        ids.append(fake_worker.publish(fake_worker.claim()))
    return ids


@pytest.fixture
def cancelled(client: Client, submit: Submit) -> uuid.UUID:
    """A job that can be retried."""
    job_id = submit(method="ce", network="small")["id"]
    client.post(f"/jobs/{job_id}/cancel")
    return uuid.UUID(job_id)


@POSTGRES
def test_of_two_requests_for_a_new_alias_the_second_one_moves_it(
    client: Client, engine: Engine, model_ids: list[uuid.UUID]
) -> None:
    first, second = model_ids

    def move() -> Any:
        return client.put("/aliases/champion", json={"model_id": str(second)})

    answer = during(engine, lambda session: models.pin(session, "champion", first), move)
    assert answer.status_code in (200, 201), answer.text
    alias = client.get("/aliases/champion").json()
    assert alias["model_id"] == str(second)
    assert [change["model_id"] for change in alias["history"]] == [str(second), str(first)]


@POSTGRES
def test_J5_an_alias_and_a_job_never_name_a_model_that_is_deleted_meanwhile(
    client: Client, engine: Engine, dataset_id: str, model_ids: list[uuid.UUID]
) -> None:
    first, second = map(str, model_ids)

    def delete(model_id: str) -> Callable[[Session], object]:
        return lambda session: models.remove(session, uuid.UUID(model_id))

    def move() -> Any:
        return client.put("/aliases/champion", json={"model_id": first})

    def score() -> Any:
        return client.post("/jobs", json={"type": "predict", "dataset_id": dataset_id, "model": second})

    assert during(engine, delete(first), move).json()["type"] == "/problems/model-not-found"
    assert during(engine, delete(second), score).json()["type"] == "/problems/model-not-found"
    assert client.get("/aliases/champion").status_code == 404
    assert client.get("/jobs?type=predict").json()["items"] == []


@POSTGRES
def test_J5_a_model_that_an_alias_is_moved_to_meanwhile_is_not_deleted(
    client: Client, engine: Engine, model_ids: list[uuid.UUID]
) -> None:
    model_id = model_ids[0]

    def delete() -> Any:
        return client.delete(f"/models/{model_id}")

    answer = during(engine, lambda session: models.pin(session, "champion", model_id), delete)
    assert answer.json()["type"] == "/problems/in-use"


@POSTGRES
@pytest.mark.parametrize(
    ("method", "path", "body"), [("PATCH", "", {"name": "x"}), ("POST", "/cancel", None), ("POST", "/retry", None)]
)
def test_a_job_that_is_deleted_meanwhile_is_a_404(
    client: Client, engine: Engine, cancelled: uuid.UUID, method: str, path: str, body: Any
) -> None:
    def change() -> Any:
        return client.request(method, f"/jobs/{cancelled}{path}", json=body)

    answer = during(engine, lambda session: jobs.delete(session, cancelled), change)
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/job-not-found")


@POSTGRES
def test_J5_no_job_is_queued_whose_data_set_is_deleted_meanwhile(
    client: Client, engine: Engine, dataset_id: str, cancelled: uuid.UUID
) -> None:
    def retry() -> Any:
        return client.post(f"/jobs/{cancelled}/retry")

    answer = during(engine, lambda session: datasets.delete(session, uuid.UUID(dataset_id)), retry)
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/dataset-deleted")
    assert client.get(f"/jobs/{cancelled}").json()["status"] == "cancelled"


@POSTGRES
def test_J5_a_data_set_whose_job_is_retried_meanwhile_is_not_deleted(
    client: Client, engine: Engine, settings: Settings, dataset_id: str, cancelled: uuid.UUID
) -> None:
    def retry(session: Session) -> None:
        jobs.retry(session, cancelled, scratch=False, settings=settings)

    answer = during(engine, retry, lambda: client.delete(f"/datasets/{dataset_id}"))
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/in-use")


@POSTGRES
def test_SEC14_a_login_and_the_check_of_another_session_of_the_person_do_not_wait_for_each_other(
    engine: Engine, settings: Settings
) -> None:
    person = Person("https://login.example.org", "ada", "Ada")

    def log_in(session: Session, *scopes: str) -> str:
        return login.open_session(
            session, person, scopes, settings=settings, refresh_token=None, replaced="", request_id="1"
        )

    with db.transaction(engine) as session:
        session_id = log_in(session, "read")

    def check() -> None:
        with db.transaction(engine) as session:
            login.confirm(session, session_id, person, ["read"], "a refresh token", settings)

    with ThreadPoolExecutor(1) as pool, db.transaction(engine) as session:
        session.execute(select(ApiKey).where(ApiKey.subject == "ada").with_for_update())
        checked = pool.submit(check)
        eventually(lambda: waits(engine), what="the check waits for the person's row")
        log_in(session, "read", "train")  # which ends the other session
    checked.result()
    with db.transaction(engine, read_only=True) as session:
        assert [row.scopes for row in session.scalars(select(LoginSession))] == [["read", "train"]]


@BOTH
def test_a_scoring_whose_model_was_deleted_is_not_queued_again(
    client: Client, engine: Engine, dataset_id: str, model_ids: list[uuid.UUID]
) -> None:
    model_id = str(model_ids[0])
    job = client.post("/jobs", json={"type": "predict", "dataset_id": dataset_id, "model": model_id}).json()
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.delete(f"/models/{model_id}").status_code == 204
    answer = client.post(f"/jobs/{job['id']}/retry")
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/model-deleted")
    with db.transaction(engine, read_only=True) as session:
        assert session.get_one(Job, uuid.UUID(job["id"])).state == State.cancelled
