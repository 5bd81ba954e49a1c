"""Models and the names that move over them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event

from app.models import following
from app.storage import Storage
from tests.app.conftest import BOTH, Client, FakeWorker


@pytest.fixture
def published(submit: Callable[..., Any], fake_worker: FakeWorker) -> list[str]:
    """Three models, oldest first."""
    model_ids = []
    for seed in range(3):
        submit(seed=seed)
        model_ids.append(str(fake_worker.publish(fake_worker.claim())))
    return model_ids


@BOTH
def test_a_succeeded_job_carries_its_model_and_the_model_its_job(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    assert job["model_id"] is None
    model_id = str(fake_worker.publish(fake_worker.claim()))
    assert client.get(f"/jobs/{job['id']}").json()["model_id"] == model_id
    model = client.get(f"/models/{model_id}").json()
    assert (model["job_id"], model["method"], model["classes"]) == (job["id"], "denll", ["cat", "dog"])
    assert [m["id"] for m in client.get("/models?method=denll").json()["items"]] == [model_id]
    assert client.get("/models?method=ce").json()["items"] == []


@BOTH
def test_default_follows_the_newest_training_until_it_is_pinned(
    client: Client, published: list[str], submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    follows = client.get("/aliases/default").json()
    assert (follows["model_id"], follows["pinned"]) == (published[2], False)
    assert client.get(f"/models/{published[2]}").json()["aliases"] == ["default"]
    assert client.put("/aliases/default", json={"model_id": published[0]}).status_code == 201
    submit()
    fake_worker.publish(fake_worker.claim())
    assert client.get("/aliases/default").json()["model_id"] == published[0]
    assert client.delete("/aliases/default").status_code == 204
    assert client.get("/aliases/default").json()["model_id"] not in published


@BOTH
def test_a_self_test_never_moves_default(client: Client, submit: Callable[..., Any], fake_worker: FakeWorker) -> None:
    def publish(**fields: Any) -> str:
        submit(**fields)
        return str(fake_worker.publish(fake_worker.claim()))

    noise = {"kind": "symmetric", "rate": 0.2}
    only = publish(noise=noise)
    assert client.get("/aliases/default").json()["model_id"] == only  # there is no other
    real = publish()
    publish(noise=noise)
    assert client.get("/aliases/default").json()["model_id"] == real


@BOTH
def test_default_moves_to_a_newer_model_only_where_its_figures_are_not_below(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    def publish(accuracy: float | None) -> tuple[str, str]:
        job_id = submit()["id"]
        figure = None if accuracy is None else {"last": accuracy}
        return job_id, str(fake_worker.publish(fake_worker.claim(), test_accuracy=figure))

    def default() -> Any:
        return client.get("/aliases/default").json()

    _, first = publish(0.8)
    assert (default()["model_id"], default()["reason"]) == (first, "it is the first model")
    job_id, worse = publish(0.7)
    below = "test accuracy 0.7000, below the 0.8000 of the model that stays"
    assert default()["model_id"] == first
    assert default()["passed_over"] == {"model_id": worse, "reason": below}
    assert client.get(f"/models/{worse}").json()["default_reason"] == below
    assert client.get(f"/models/{worse}").json()["aliases"] == []
    assert f"The alias default was not moved to this model: {below}." in client.get(f"/jobs/{job_id}/events").text
    assert client.get("/aliases").json()["items"][0] == default()

    _, equal = publish(0.8)
    assert (default()["model_id"], default()["passed_over"]) == (equal, None)
    assert default()["reason"] == "test accuracy 0.8000, 0.8000 for the model before it"
    _, unmeasured = publish(None)
    assert default()["model_id"] == unmeasured

    assert client.delete(f"/models/{unmeasured}").status_code == 204
    assert default()["model_id"] == equal  # the one before that moved it
    assert client.put("/aliases/default", json={"model_id": worse}).status_code == 201
    assert (default()["model_id"], default()["reason"], default()["passed_over"]) == (worse, None, None)
    assert [client.delete(f"/models/{gone}").status_code for gone in (equal, first)] == [204, 204]
    client.delete("/aliases/default")
    assert default()["model_id"] == worse  # nothing else is left


@BOTH
def test_deleting_the_job_of_the_model_behind_default_changes_nothing(
    client: Client, published: list[str], submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job_id = client.get(f"/models/{published[2]}").json()["job_id"]
    assert client.delete(f"/jobs/{job_id}").status_code == 204
    assert client.get("/aliases/default").json()["model_id"] == published[2]


SET = uuid.UUID(int=1)
FIGURES = {"test_accuracy": {"last": 0.5}, "clean_validation_accuracy": 0.9, "noisy_validation_accuracy": 0.9}


def model(**changes: Any) -> following.Candidate:
    return following.Candidate(SET, 1, FIGURES, is_self_test=False)._replace(**changes)


@pytest.mark.parametrize(
    "new, present, moves, reason",
    [
        (model(), None, True, "first"),
        (model(), model(), True, "test accuracy"),
        (model(metrics=FIGURES | {"test_accuracy": {"last": 0.4}}), model(), False, "test accuracy"),
        # the figure that says most counts, whatever the others are
        (model(metrics=FIGURES | {"noisy_validation_accuracy": 0.1}), model(), True, "test accuracy"),
        (model(metrics={"clean_validation_accuracy": 0.8}), model(), False, "clean labels"),
        (model(metrics={"noisy_validation_accuracy": 0.95}), model(), True, "given labels"),
        (model(metrics={"noisy_validation_accuracy": 0.8, "test_accuracy": None}), model(), False, "given labels"),
        # nothing like for like: the newest
        (model(metrics={}), model(), True, "different ways"),
        (model(metrics={}, dataset_id=uuid.UUID(int=2)), model(), True, "another data set"),
        (model(metrics={}, dataset_id=None), model(dataset_id=None), True, "another data set"),
        (model(metrics={"test_accuracy": {"last": 0.1}}, label_version=2), model(), True, "version of the labels"),
        # self-tests
        (model(is_self_test=True, dataset_id=None), model(), False, "self-test"),
        (model(metrics={"test_accuracy": {"last": 0.1}}), model(is_self_test=True), True, "self-test"),
        (model(is_self_test=True), None, True, "first"),
    ],
)
def test_a_verdict_is_by_figures_that_are_like_for_like(
    new: following.Candidate, present: following.Candidate | None, moves: bool, reason: str
) -> None:
    verdict = following.decide(new, present)
    assert (verdict.moves, reason in verdict.reason) == (moves, True)
    assert not following.decide(new, present, is_baseline=True).moves


@BOTH
def test_an_alias_moves_remembers_and_rolls_back(client: Client, published: list[str]) -> None:
    first, second, _ = published
    assert client.put("/aliases/champion", json={"model_id": first}).status_code == 201
    assert client.put("/aliases/champion", json={"model_id": second}).status_code == 200
    back = client.put("/aliases/champion", json={"rollback": True}).json()
    assert back["model_id"] == first
    assert [change["model_id"] for change in back["history"]] == [first, second, first]
    assert [a["name"] for a in client.get("/aliases").json()["items"]] == ["default", "champion"]
    assert client.delete("/aliases/champion").status_code == 204
    assert client.get("/aliases/champion").status_code == 404
    assert client.delete("/aliases/champion").status_code == 404


@BOTH
def test_a_page_of_aliases_reads_all_their_histories_at_once(client: Client, published: list[str]) -> None:
    names = ["a", "b", "c"]
    for name in names:
        for model_id in published:
            client.put(f"/aliases/{name}", json={"model_id": model_id})
    statements: list[str] = []
    engine = client.app.state.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    page = client.get("/aliases?limit=3").json()
    reads = sum("FROM alias_change" in statement for statement in statements)
    last = client.get(f"/aliases?limit=3&cursor={page['next_cursor']}").json()

    assert [alias["name"] for alias in page["items"] + last["items"]] == ["default", *names]
    assert reads == 2  # of those that are pinned, and of `default`
    for alias in page["items"][1:] + last["items"]:
        assert [change["model_id"] for change in alias["history"]] == published[::-1]


def test_there_must_be_something_to_roll_back_to(client: Client, published: list[str]) -> None:
    client.put("/aliases/champion", json={"model_id": published[0]})
    answer = client.put("/aliases/champion", json={"rollback": True})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/nothing-to-roll-back")


@pytest.mark.parametrize("body", [{}, {"rollback": False}, {"model_id": "x"}, {"model_id": None, "rollback": "yes"}])
def test_an_alias_needs_a_model_or_a_rollback(client: Client, body: dict[str, Any]) -> None:
    assert client.put("/aliases/champion", json=body).status_code == 422


@pytest.mark.parametrize("name", ["Champion", "a b", "-x", "x" * 64, "%00"])
def test_alias_names_are_plain(client: Client, published: list[str], name: str) -> None:
    assert client.put(f"/aliases/{name}", json={"model_id": published[0]}).status_code == 422


@BOTH
def test_a_pinned_model_cannot_be_deleted(client: Client, published: list[str], files: Storage) -> None:
    first = published[0]
    client.put("/aliases/champion", json={"model_id": first})
    refused = client.delete(f"/models/{first}")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")
    client.delete("/aliases/champion")
    assert client.delete(f"/models/{first}").status_code == 204
    assert client.get(f"/models/{first}").status_code == 404
    assert not any(path.name == first for path in (files.root / "models").iterdir())


def test_a_model_is_downloaded_whole_or_in_part_also_when_its_job_is_gone(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    model_id = str(fake_worker.publish(fake_worker.claim()))
    assert client.delete(f"/jobs/{job['id']}").status_code == 204

    whole = client.get(f"/models/{model_id}/export")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "application/zip")
    assert whole.headers["content-disposition"] == f'attachment; filename="model-{model_id}.zip"'
    part = client.get(f"/models/{model_id}/export?format=bundle", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, whole.content[2:6])
    known = client.get(f"/models/{model_id}/export", headers={"If-None-Match": whole.headers["etag"]})
    assert known.status_code == 304
    assert client.get(f"/models/{model_id}/export", headers={"Range": "bytes=1000-"}).status_code == 416
    head = client.head(f"/models/{model_id}/export")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(whole.content)))


def test_only_what_exists_is_exported(client: Client, published: list[str], files: Storage) -> None:
    assert client.get(f"/models/{published[0]}/export?format=onnx").status_code == 422
    (files.root / "models" / published[0] / "model.zip").unlink()
    missing = client.get(f"/models/{published[0]}/export")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/artifact-not-found")
    unknown = client.get(f"/models/{'0' * 8}-0000-4000-8000-{'0' * 12}/export")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "/problems/model-not-found")


def test_without_a_model_there_is_no_default(client: Client) -> None:
    assert client.get("/aliases/default").status_code == 404
    assert client.get("/aliases").json()["items"] == []
