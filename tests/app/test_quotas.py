"""What one key may use: requests a second, queued jobs, stored bytes, device seconds, and the priority `high`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app import quotas
from app.db import session as db
from app.db.clock import now
from app.db.tables import DeletedJobUse, Job, JobEvent
from app.http.rate_limit import TokenBuckets
from tests.app.conftest import ADMIN, BOTH, Client, FakeWorker, bearer, upload


def new_key(client: Client, **limits: Any) -> Any:
    body = {"name": "test", "scopes": ["read", "train", "predict"], **limits}
    answer = client.post("/keys", json=body, headers=bearer(ADMIN))
    assert answer.status_code == 201, answer.text
    return answer.json()


def post_job(client: Client, key: Any, dataset_id: str, **fields: Any) -> Any:
    return client.post("/jobs", json={"dataset_id": dataset_id, **fields}, headers=bearer(key["key"]))


def violated(answer: Any) -> list[str]:
    """The limits that a refusal names."""
    assert answer.status_code == 429, answer.text
    assert int(answer.headers["retry-after"]) > 0
    policies: list[str] = answer.json()["violated-policies"]
    return policies


def test_a_bucket_refills_steadily_and_never_holds_more_than_its_burst() -> None:
    buckets = TokenBuckets()
    first = [buckets.take("a", 0.5, 100.0) for _ in range(6)]
    assert [allowance.allowed for allowance in first] == [True] * 5 + [False]
    assert [allowance.remaining for allowance in first] == [4, 3, 2, 1, 0, 0]
    assert first[-1].wait_s == pytest.approx(2.0)
    assert buckets.take("b", 0.5, 100.0).remaining == 4
    assert not buckets.take("a", 0.5, 101.9).allowed
    assert buckets.take("a", 0.5, 102.0).allowed
    assert buckets.take("a", 0.5, 1000.0).remaining == 4


def test_the_number_of_buckets_is_bounded_and_the_one_used_last_stays() -> None:
    buckets = TokenBuckets(most=3)
    assert [buckets.take("busy", 1.0, 0.0).remaining for _ in range(2)] == [9, 8]
    for n in range(7):
        buckets.take(f"other {n}", 1.0, 0.0)
        assert buckets.take("busy", 1.0, 0.0).remaining == 7 - n
    assert len(buckets) == 3
    assert buckets.take("other 0", 1.0, 0.0).remaining == 9


def test_DEG8_a_key_with_too_many_requests_is_refused_and_told_its_limit(guarded: Client) -> None:
    limited, other = new_key(guarded, requests_per_s=0.3), new_key(guarded)
    answers = [guarded.get("/jobs", headers=bearer(limited["key"])) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=10'
    assert re.fullmatch(r'"requests";r=2;t=\d+', answers[0].headers["ratelimit"])
    assert violated(answers[3]) == ["requests"]
    assert answers[3].json()["type"] == "/problems/rate-limited"
    assert answers[3].headers["ratelimit"].startswith('"requests";r=0;t=')
    assert guarded.get("/jobs", headers=bearer(other["key"])).headers["ratelimit-policy"] == '"requests";q=2000;w=10'
    for _ in range(20):
        answer = guarded.get("/jobs", headers=bearer(ADMIN))
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


def test_an_address_without_a_valid_key_is_limited_before_its_keys_are_looked_up(
    with_settings: Callable[..., Client],
) -> None:
    guarded = with_settings(admin_key=ADMIN, address_requests_per_s=0.3)
    known = new_key(guarded)
    assert guarded.get("/jobs", headers=bearer(known["key"])).status_code == 200
    answers = [guarded.get("/jobs", headers=bearer(f"guess-{n}")) for n in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
    assert violated(answers[2]) == ["requests"]
    assert guarded.get("/jobs", headers=bearer(known["key"])).status_code == 200
    assert guarded.get("/livez").status_code == 200


def test_without_keys_nothing_is_limited_unless_the_operator_says_so(
    client: Client, with_settings: Callable[..., Client]
) -> None:
    assert "ratelimit" not in client.get("/jobs").headers
    limited = with_settings(address_requests_per_s=0.1)
    assert [limited.get("/jobs").status_code for _ in range(2)] == [200, 429]


@BOTH
def test_the_queued_jobs_of_a_key_are_limited(guarded: Client, dataset_id: str) -> None:
    key, other = new_key(guarded, queued_jobs=2), new_key(guarded)
    first = post_job(guarded, key, dataset_id)
    assert first.status_code == 202
    assert violated(post_job(guarded, key, dataset_id, method="elr", compare_with=["ce"])) == ["queued-jobs"]
    assert post_job(guarded, key, dataset_id).status_code == 202
    refused = post_job(guarded, key, dataset_id)
    assert violated(refused) == ["queued-jobs"]
    assert "2 of 2 queued jobs" in refused.json()["detail"]
    assert post_job(guarded, other, dataset_id).status_code == 202

    job = f"/jobs/{first.json()['id']}"
    assert guarded.post(f"{job}/cancel", headers=bearer(other["key"])).status_code == 202
    assert post_job(guarded, key, dataset_id).status_code == 202
    # It is this key's job, whoever has it tried again.
    assert violated(guarded.post(f"{job}/retry", headers=bearer(other["key"]))) == ["queued-jobs"]


@BOTH
def test_DEG8_jobs_sent_at_once_do_not_pass_the_quota_together(guarded: Client, dataset_id: str) -> None:
    key = new_key(guarded, queued_jobs=3)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post_job(guarded, key, dataset_id).status_code, range(8)))
    assert sorted(answers) == [202] * 3 + [429] * 5


@BOTH
def test_the_bytes_that_a_key_stores_are_limited(guarded: Client, archive_bytes: bytes) -> None:
    key, other = new_key(guarded, stored_bytes=int(1.5 * len(archive_bytes))), new_key(guarded)
    first = upload(guarded, archive_bytes, **bearer(key["key"]))
    assert first.status_code == 202
    assert violated(upload(guarded, archive_bytes, **bearer(key["key"]))) == ["stored-bytes"]
    folder = guarded.app.state.storage.root / "uploads"  # type: ignore[attr-defined]
    assert len([path for path in folder.iterdir() if path.is_file()]) == 1
    assert upload(guarded, archive_bytes, **bearer(other["key"])).status_code == 202
    assert guarded.delete(f"/datasets/{first.json()['id']}", headers=bearer(key["key"])).status_code == 204
    assert upload(guarded, archive_bytes, **bearer(key["key"])).status_code == 202


@BOTH
def test_an_upload_of_unknown_length_is_limited_when_it_has_come(guarded: Client, archive_bytes: bytes) -> None:
    key = new_key(guarded, stored_bytes=len(archive_bytes) - 1)
    headers = {"Content-Type": "application/zip", **bearer(key["key"])}
    answer = guarded.post("/datasets", content=iter([archive_bytes]), headers=headers)
    assert violated(answer) == ["stored-bytes"]
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(archive_bytes)), **bearer(key["key"])}
    assert violated(guarded.post("/uploads", headers=tus)) == ["stored-bytes"]


@BOTH
def test_the_device_seconds_of_a_key_are_limited(guarded: Client, dataset_id: str, fake_worker: FakeWorker) -> None:
    key, other = new_key(guarded, device_s_per_day=150.0), new_key(guarded)
    job_id = uuid.UUID(post_job(guarded, key, dataset_id).json()["id"])
    fake_worker.fail(fake_worker.claim())
    with db.transaction(fake_worker.engine) as session:
        session.execute(update(Job).where(Job.id == job_id).values(gpus=2))
        started = session.scalars(select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.kind == "status")).all()[1]
        assert started.data["status"] == "running"
        started.created_at -= timedelta(seconds=50)
    with db.transaction(fake_worker.engine, read_only=True) as session:
        assert quotas.device_seconds(session, uuid.UUID(key["id"])) == pytest.approx(100.0, abs=20.0)
        assert quotas.device_seconds(session, uuid.UUID(other["id"])) == 0.0
    assert post_job(guarded, key, dataset_id).status_code == 202

    fake_worker.claim()  # it runs on
    with db.transaction(fake_worker.engine) as session:
        newest = session.scalars(select(JobEvent).where(JobEvent.kind == "status").order_by(JobEvent.id.desc())).first()
        assert newest is not None
        newest.created_at -= timedelta(seconds=90)
    assert violated(post_job(guarded, key, dataset_id)) == ["device-seconds"]
    assert guarded.delete(f"/jobs/{job_id}", headers=bearer(key["key"])).status_code == 204
    assert violated(post_job(guarded, key, dataset_id)) == ["device-seconds"]  # also of the job that is gone
    with db.transaction(fake_worker.engine) as session:
        session.execute(update(DeletedJobUse).values(finished_at=now(-quotas.DAY_S - 60.0)))
    assert post_job(guarded, key, dataset_id).status_code == 202
    assert post_job(guarded, other, dataset_id).status_code == 202


def test_only_keys_with_the_right_to_it_overtake_others(guarded: Client, dataset_id: str) -> None:
    key, fast = new_key(guarded), new_key(guarded, high_priority=True)
    refused = post_job(guarded, key, dataset_id, priority="high")
    assert (refused.status_code, refused.json()["type"]) == (403, "/problems/forbidden")
    job = post_job(guarded, key, dataset_id, priority="normal").json()
    path = f"/jobs/{job['id']}"
    assert guarded.patch(path, json={"priority": "high"}, headers=bearer(key["key"])).status_code == 403
    assert guarded.patch(path, json={"priority": "high"}, headers=bearer(fast["key"])).json()["priority"] == "high"
    assert post_job(guarded, fast, dataset_id, priority="high").status_code == 202
    assert guarded.patch(path, json={"priority": "normal"}, headers=bearer(key["key"])).status_code == 200


@BOTH
def test_limits_of_a_key_are_changed_one_by_one_and_hold_at_once(guarded: Client, dataset_id: str) -> None:
    key = new_key(guarded, queued_jobs=1)
    path = f"/keys/{key['id']}"
    assert post_job(guarded, key, dataset_id).status_code == 202
    assert violated(post_job(guarded, key, dataset_id)) == ["queued-jobs"]
    changed = guarded.patch(path, json={"queued_jobs": 2, "requests_per_s": 0.2}, headers=bearer(ADMIN))
    assert changed.status_code == 200, changed.text
    known = changed.json()
    assert (known["queued_jobs"], known["requests_per_s"], known["stored_bytes"]) == (2, 0.2, None)
    assert post_job(guarded, key, dataset_id).status_code == 202
    assert violated(post_job(guarded, key, dataset_id)) == ["queued-jobs"]
    assert violated(post_job(guarded, key, dataset_id)) == ["requests"]
    restored = guarded.patch(path, json={"requests_per_s": None}, headers=bearer(ADMIN)).json()
    assert (restored["queued_jobs"], restored["requests_per_s"]) == (2, None)
    assert guarded.patch(path, json={"queued_jobs": 0}, headers=bearer(ADMIN)).status_code == 422
    assert guarded.patch(f"/keys/{uuid.uuid4()}", json={}, headers=bearer(ADMIN)).status_code == 404
    assert guarded.patch(path, json={"high_priority": True}, headers=bearer(key["key"])).status_code == 403
