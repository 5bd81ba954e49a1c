"""The audit table: every act has its entry, what was refused has none, and the list is filtered and paged."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from app.db import session as db
from tests.app.conftest import ADMIN, BOTH, Client, FakeWorker, bearer, ingest_it, upload
from tests.app.test_networks import put

pytestmark = BOTH


@pytest.fixture
def client(with_settings: Callable[..., Client]) -> Client:
    client = with_settings(admin_key=ADMIN)
    client.headers.update(bearer(ADMIN))
    return client


def entries(client: Client, **filters: Any) -> list[dict[str, Any]]:
    answer = client.get("/audit", params={"limit": 200, **filters})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items


def test_every_act_has_one_entry_with_its_actor_and_request(
    client: Client, dataset_id: str, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    key = client.post("/keys", json={"name": "Ada", "scopes": ["train"]}).json()
    ada = {**bearer(key["key"]), "X-Request-Id": "r-1"}
    edits = {"edits": [{"action": "confirm", "image": 0, "from": "cat"}]}
    once = {**ada, "Idempotency-Key": "k1"}
    for _ in range(2):  # the second is a replay
        assert client.post(f"/datasets/{dataset_id}/labels", json=edits, headers=once).status_code == 201
    models = []
    for _ in range(2):
        submit()
        models.append(fake_worker.publish(fake_worker.claim()))
    job = submit()["id"]
    model = str(models[0])
    assert client.put("/aliases/best", json={"model_id": model}, headers=ada).status_code == 201
    assert client.delete(f"/models/{model}", headers=ada).status_code == 409
    assert client.delete(f"/datasets/{dataset_id}", headers=ada).status_code == 409
    assert client.delete("/aliases/best", headers=ada).status_code == 204
    assert client.delete(f"/models/{model}", headers=ada).status_code == 204
    assert client.post(f"/jobs/{job}/cancel", headers=ada).status_code == 202
    assert client.post(f"/jobs/{job}/cancel", headers=ada).status_code == 409
    assert client.delete(f"/jobs/{job}", headers=ada).status_code == 204
    assert client.delete(f"/datasets/{dataset_id}", headers=ada).status_code == 204
    assert client.delete(f"/keys/{key['id']}").status_code == 204

    listed = entries(client)
    acts = [(e["action"], e["object"], e["actor"], e["key_id"]) for e in reversed(listed)]
    by_ada = ("Ada", key["id"])
    assert acts == [
        ("key.create", f"/keys/{key['id']}", "admin", None),
        ("labels.edit", f"/datasets/{dataset_id}/labels/2", *by_ada),
        ("alias.move", "/aliases/best", *by_ada),
        ("alias.delete", "/aliases/best", *by_ada),
        ("model.delete", f"/models/{model}", *by_ada),
        ("job.cancel", f"/jobs/{job}", *by_ada),
        ("job.delete", f"/jobs/{job}", *by_ada),
        ("dataset.delete", f"/datasets/{dataset_id}", *by_ada),
        ("key.revoke", f"/keys/{key['id']}", "admin", None),
    ]
    assert {e["request_id"] for e in listed if e["actor"] == "Ada"} == {"r-1"}
    details = {e["action"]: e["detail"] for e in listed}
    assert details["key.create"] == {"name": "Ada", "scopes": ["train"], "expires_at": None}
    assert details["alias.move"] == {"model_id": model, "rollback": False}
    assert details["dataset.delete"] == {"name": "pets"}
    assert key["key"] not in str(listed)


def test_weights_that_are_installed_and_deleted_have_entries(client: Client) -> None:
    installed = put(client, "small.mine")
    assert installed.status_code == 201, installed.text
    assert put(client, "small.mine", content=b"no file").status_code == 422
    assert client.delete("/weights/small.mine").status_code == 204
    assert client.delete("/weights/small.mine").status_code == 404

    listed = entries(client, object="/weights/small.mine")
    assert [entry["action"] for entry in listed] == ["weights.delete", "weights.install"]
    assert {entry["detail"]["digest"] for entry in listed} == {installed.json()["digest"]}


def test_an_act_whose_entry_cannot_be_written_is_not_done(client: Client, archive_bytes: bytes) -> None:
    dataset_id = upload(client, archive_bytes).json()["id"]
    ingest_it(client, dataset_id)
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.execute(text("ALTER TABLE audit RENAME TO gone"))
    client.app.state.engine.dispose()  # type: ignore[attr-defined]

    assert client.delete(f"/datasets/{dataset_id}").status_code >= 500
    assert client.post("/keys", json={"name": "Ada", "scopes": ["train"]}).status_code >= 500
    assert client.get(f"/datasets/{dataset_id}").json()["status"] == "ready"
    assert client.get("/keys").json()["items"] == []


def test_the_list_is_filtered_and_paged(client: Client) -> None:
    ids = [client.post("/keys", json={"name": f"k{n}", "scopes": ["read"]}).json()["id"] for n in range(5)]
    client.delete(f"/keys/{ids[0]}")

    assert [e["object"] for e in entries(client, action="key.create")] == [f"/keys/{one}" for one in reversed(ids)]
    assert [e["action"] for e in entries(client, object=f"/keys/{ids[0]}")] == ["key.revoke", "key.create"]
    assert len(entries(client, object="/keys")) == 6
    assert entries(client, object="/key") == []
    assert entries(client, object=f"/keys/{uuid.uuid4()}") == entries(client, actor="nobody") == []
    pages: list[list[Any]] = []
    cursor = None
    while cursor or not pages:
        page = client.get("/audit", params={"limit": 4} | ({"cursor": cursor} if cursor else {})).json()
        pages.append([e["id"] for e in page["items"]])
        cursor = page["next_cursor"]
    assert [len(page) for page in pages] == [4, 2]
    ids_of_entries = list(itertools.chain(*pages))
    assert ids_of_entries == sorted(ids_of_entries, reverse=True)
    assert client.get("/audit", params={"action": "no.such"}).status_code == 422
    assert client.get("/audit", params={"cursor": "x"}).status_code == 422


def test_only_an_admin_reads_it(client: Client) -> None:
    key = client.post("/keys", json={"name": "Ada", "scopes": ["read", "train", "predict"]}).json()["key"]
    assert client.get("/audit", headers=bearer(key)).status_code == 403
