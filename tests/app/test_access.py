"""Keys: where they are needed, what they allow, and that only their hash is stored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select, text

from app.db import session as db
from app.db.tables import ApiKey
from app.settings import Settings
from tests.app.conftest import ADMIN, BOTH, Client, bearer
from tests.servers import eventually


def new_key(client: Client, *scopes: str) -> Any:
    answer = client.post("/keys", json={"name": "test", "scopes": list(scopes)}, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_SEC9_settings_that_are_refused_keep_their_secrets() -> None:
    secrets: dict[str, Any] = {"admin_key": "too-short", "database_url": "postgresql://user:pass-word@host/db"}
    with pytest.raises(ValidationError) as caught:
        Settings(**secrets)
    assert "DENLL_ADMIN_KEY" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("too-short", "pass-word"))


def test_SEC1_a_public_address_without_a_key_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="refusing to bind"):
        Settings(host="0.0.0.0")
    with pytest.raises(ValidationError, match="16 characters"):
        Settings(host="0.0.0.0", admin_key="short")


def test_with_a_key_configured_only_health_and_the_page_are_open(guarded: Client) -> None:
    for path in ("/livez", "/", "/docs"):
        assert guarded.get(path).status_code == 200
    assert guarded.get("/readyz").status_code in (200, 503)
    paths = guarded.app.openapi()["paths"]  # type: ignore[attr-defined]
    for template, operations in paths.items():
        for method in operations:
            if template not in ("/livez", "/readyz") and method != "options":  # which says what tus is spoken
                answer = guarded.request(method.upper(), template.replace("{", "").replace("}", ""))
                assert answer.status_code == 401, (method, template)
                assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer x", "Basic abc", "Bearer \xff\xfe", f"bearer{ADMIN}"])
def test_what_is_no_valid_key_is_a_401(guarded: Client, value: str) -> None:
    headers = {"Authorization": value.encode("latin-1")} if value else {}
    assert guarded.get("/jobs", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_a_stranger_s_body_is_not_even_parsed(guarded: Client) -> None:
    assert guarded.post("/jobs", content=b"{broken", headers={"Content-Type": "application/json"}).status_code == 401


def test_scopes_open_their_own_doors_only(guarded: Client) -> None:
    read = bearer(new_key(guarded, "read")["key"])
    train = bearer(new_key(guarded, "train")["key"])
    predict = bearer(new_key(guarded, "predict")["key"])
    admin = bearer(new_key(guarded, "admin")["key"])
    assert guarded.get("/jobs", headers=read).status_code == 200
    assert guarded.post("/jobs", json={}, headers=read).status_code == 403
    assert guarded.post("/jobs", json={}, headers=train).status_code == 422
    assert guarded.get("/jobs", headers=train).status_code == 403
    assert guarded.get("/predict?image=https://x", headers=predict).status_code == 403
    assert guarded.get("/predict?image=data:x", headers=predict).json()["type"] != "/problems/forbidden"
    assert guarded.get("/predict?image=data:x", headers=read).json()["type"] == "/problems/forbidden"
    assert guarded.get("/keys", headers=read).status_code == 403
    assert guarded.get("/keys", headers=admin).status_code == 200


@pytest.mark.parametrize("reference", ["dataset:x/0", "DataSet:x/0"])
def test_a_picture_of_a_data_set_is_for_those_who_may_read_it(guarded: Client, reference: str) -> None:
    """An overlay would show it, and a prediction tells of it."""
    predict, both = (bearer(new_key(guarded, *scopes)["key"]) for scopes in (["predict"], ["predict", "read"]))
    stored = {"id": "stored", "image": {"type": "dataset", "value": "x/0"}}
    sent = {"id": "sent", "image": {"type": "base64", "value": "eA=="}}

    def responses(key: dict[str, str]) -> list[Any]:
        overlay = guarded.get("/predict", params={"image": reference, "format": "overlay"}, headers=key)
        return [overlay, guarded.post("/predict", json={"inputs": [sent, stored]}, headers=key)]

    refused = [answer.json() for answer in responses(predict)]
    assert [(problem["status"], "'read'" in problem["detail"]) for problem in refused] == [(403, True)] * 2
    assert all(answer.status_code != 403 for answer in responses(both))


@BOTH
def test_a_key_is_shown_once_and_stored_as_a_hash(guarded: Client) -> None:
    created = new_key(guarded, "read")
    shown_again = guarded.get(f"/keys/{created['id']}", headers=bearer(ADMIN))
    assert created["key"] not in shown_again.text
    assert created["key"] not in guarded.get("/keys", headers=bearer(ADMIN)).text
    with db.transaction(guarded.app.state.engine) as session:  # type: ignore[attr-defined]
        row = session.execute(select(ApiKey)).scalar_one()
        everything = session.execute(text("select * from api_key")).one()
    assert len(row.key_sha256 or "") == 64
    assert created["key"] not in str(everything)


@BOTH
def test_a_revoked_key_stops_working_at_once(guarded: Client) -> None:
    created = new_key(guarded, "read")
    assert guarded.get("/jobs", headers=bearer(created["key"])).status_code == 200
    assert guarded.delete(f"/keys/{created['id']}", headers=bearer(ADMIN)).status_code == 204
    assert guarded.get("/jobs", headers=bearer(created["key"])).status_code == 401
    assert guarded.get(f"/keys/{created['id']}", headers=bearer(ADMIN)).json()["revoked_at"]


def test_without_a_key_configured_loopback_is_open(client: Client) -> None:
    assert client.get("/jobs").status_code == 200


@pytest.mark.parametrize("scopes", [[], ["root"], ["read"] * 9, "read", [1]])
def test_scopes_are_those_that_exist(client: Client, scopes: object) -> None:
    assert client.post("/keys", json={"name": "x", "scopes": scopes}).status_code == 422


@BOTH
def test_a_key_that_expires_stops_working_and_is_named_as_expired(guarded: Client) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    body = {"name": "for a while", "scopes": ["read"], "expires_at": soon.isoformat()}
    created = guarded.post("/keys", json=body, headers=bearer(ADMIN)).json()
    key = bearer(created["key"])
    assert datetime.fromisoformat(created["expires_at"]) == soon
    assert guarded.get("/jobs", headers=key).status_code == 200

    refused: Any = eventually(lambda: (r := guarded.get("/jobs", headers=key)).status_code == 401 and r, seconds=4.0)
    assert datetime.now(UTC) >= soon
    assert f"expired at {soon.isoformat(timespec='seconds')}" in refused.json()["detail"]
    guarded.app.state.key_cache.clear()  # type: ignore[attr-defined]
    assert "expired at" in guarded.get("/jobs", headers=key).json()["detail"]  # also when it is looked up


@pytest.mark.parametrize(
    "expires_at",
    ["2020-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "2030-01-01T00:00:00", "tomorrow", 2**31, "1900000000", True],
)
def test_J2_an_expiry_that_is_past_too_far_or_no_time_is_refused(guarded: Client, expires_at: Any) -> None:
    body = {"name": "test", "scopes": ["read"], "expires_at": expires_at}
    answer = guarded.post("/keys", json=body, headers=bearer(ADMIN))
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/expires_at"


@BOTH
def test_the_last_use_of_a_key_is_written_in_batches_by_no_request(with_settings: Callable[..., Client]) -> None:
    rarely = with_settings(admin_key=ADMIN, key_usage_s=3600.0)
    used, unused = new_key(rarely, "read"), new_key(rarely, "read")
    before = datetime.now(UTC)
    for _ in range(3):
        assert rarely.get("/jobs", headers=bearer(used["key"])).status_code == 200

    def last_used(client: Client, key: Any) -> Any:
        return client.get(f"/keys/{key['id']}", headers=bearer(ADMIN)).json()["last_used_at"]

    assert last_used(rarely, used) is None
    often = with_settings(admin_key=ADMIN, key_usage_s=0.05)
    assert often.get("/jobs", headers=bearer(used["key"])).status_code == 200
    written = datetime.fromisoformat(eventually(lambda: last_used(often, used), what="a batch"))
    rarely.app.state.key_cache.write_last_used()  # type: ignore[attr-defined]  # an older use changes nothing
    assert datetime.fromisoformat(last_used(often, used)) == written
    assert before - timedelta(seconds=1) < written < datetime.now(UTC) + timedelta(seconds=1)
    assert last_used(often, unused) is None
