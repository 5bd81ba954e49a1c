"""Jobs: what a request becomes, who may change what when, and that the response never depends on a notification."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from sqlalchemy import Engine, event, func, select
from sqlalchemy.orm import Session

from app.db import session as db
from app.db.clock import now
from app.db.tables import Dataset, Job, Worker
from app.errors import ArtifactNotFound
from app.http import files as file_responses
from app.jobs import attempt, results
from app.jobs.stream import EventPoller, EventReader, stream_events
from app.notifier import Notifier, QueueName
from app.storage import Storage
from ml.formats import image_results
from ml.formats.image_results import ImageResult
from tests.app.conftest import BOTH, Client, FakeWorker, LiveServer, upload


def jobs(client: Client) -> int:
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        return session.scalar(select(func.count()).select_from(Job)) or 0


@pytest.mark.alone
@BOTH
def test_only_the_data_set_is_required_and_every_default_is_shown(client: Client, dataset_id: str) -> None:
    started = time.perf_counter()
    answer = client.post("/jobs", json={"dataset_id": dataset_id})
    took = time.perf_counter() - started
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (202, f"/jobs/{job['id']}")
    assert (job["status"], job["method"], job["attempt"]) == ("queued", "denll", 0)
    fields = client.app.state.catalog.spec["properties"]  # type: ignore[attr-defined]
    assert fields.keys() <= job["request"].keys()
    params = client.get("/methods/denll").json()["defaults"]
    assert params.items() <= job["request"]["params"].items() or set(params) == set(job["request"]["params"])
    assert client.get(f"/jobs/{job['id']}").json()["request"] == job["request"]
    assert took < 1.0


def test_defaults_suit_the_size_of_the_set_and_the_device(client: Client, dataset_id: str) -> None:
    on_cpu = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id}).json()["request"]
    assert (on_cpu["network"], on_cpu["batch_size"], on_cpu["validation_fraction"]) == ("small", 32, 0.0)
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add(Worker(id="w", kind="supervisor", device="cuda", devices=1))
    on_gpu = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id}).json()["request"]
    assert (on_gpu["network"], on_gpu["epochs"]) == ("resnet18", 100)
    body = {"dataset_id": dataset_id, "network": "small", "epochs": 3, "batch_size": 7}
    resolved = client.post("/jobs?dry_run=true", json=body).json()["request"]
    assert {name: resolved[name] for name in body} == body


def test_params_follow_from_the_facts_unless_the_request_has_some(client: Client, dataset_id: str) -> None:
    def settings(clutter: float, **fields: object) -> dict[str, Any]:
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            dataset = session.get_one(Dataset, uuid.UUID(dataset_id))
            dataset.facts = {**(dataset.facts or {}), "clutter": clutter}
        answer = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, **fields})
        return answer.json()["request"]  # type: ignore[no-any-return]

    denll = client.get("/methods/denll").json()
    (rule,) = denll["rules"]
    assert (rule["fact"], rule["preset"], client.get("/methods/ce").json()["rules"]) == ("clutter", "confounded", [])
    below = rule["below"] - 0.01
    default_params = settings(rule["below"])["params"]
    assert default_params | {"host_params": {}} == denll["defaults"]  # the host's own settings are completed too
    assert settings(below)["params"] == default_params | denll["presets"]["confounded"]
    assert settings(below, params={})["params"] == default_params
    baselines = settings(below, method="ce", compare_with=["denll", {"method": "denll", "params": {}}])["compare_with"]
    assert [baseline["params"] for baseline in baselines] == [
        default_params | denll["presets"]["confounded"],
        default_params,
    ]


def test_a_dry_run_estimates_and_queues_nothing(client: Client, dataset_id: str) -> None:
    answers = [
        client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, "image_size": 256, "epochs": epochs})
        for epochs in (10, 110, 210)
    ]
    assert {answer.status_code for answer in answers} == {200}
    short, long, longer = (answer.json()["estimate"]["seconds"] for answer in answers)
    assert longer - long == pytest.approx(long - short, abs=0.2)  # all but start and end
    assert long > 2 * short
    assert answers[0].json()["estimate"]["memory_bytes"] > 0
    assert jobs(client) == 0


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"method": "denl"}, "/method"),
        ({"network": "resnet19"}, "/network"),
        ({"params": {"splat": 1}}, "/params/splat"),
        ({"params": {"lm_learning_rate": -1}}, "/params/lm_learning_rate"),
        ({"params": {"host": "ce", "host_params": {"nope": 1}}}, "/params/host_params/nope"),
        ({"learning_rate": 0}, "/learning_rate"),
        ({"learning_rate": True}, "/learning_rate"),
        ({"noise": {"kind": "loud", "rate": 0.1}}, "/noise/kind"),
        ({"noise": {"kind": "symmetric", "rate": 2}}, "/noise/rate"),
        ({"noise": {"kind": "symmetric"}}, "/noise/rate"),
        ({"noise": {"kind": "symmetric", "rate": 0.1, "matrix": [[1, 0], [0, 1]]}}, "/noise/matrix"),
        ({"noise": {"kind": "asymmetric_superclass", "rate": 0.1}}, "/noise/kind"),
        ({"noise": {"kind": "transition", "rate": 0.1}}, "/noise/matrix"),
        ({"noise": {"kind": "transition", "rate": 0.1, "matrix": [[1, 0], [0, 1]]}}, "/noise/rate"),
        ({"noise": {"kind": "transition", "matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}}, "/noise/matrix"),
        ({"noise": {"kind": "transition", "matrix": [[1, 0], [1]]}}, "/noise/matrix/1"),
        ({"noise": {"kind": "transition", "matrix": [[0.5, 0.4], [0, 1]]}}, "/noise/matrix/0"),
        ({"noise": {"kind": "transition", "matrix": [[0.5, 0.5], [0, 2]]}}, "/noise/matrix/1/1"),
        ({"compare_with": ["ce", "nope"]}, "/compare_with/1/method"),
        ({"compare_with": ["ce"] * 9}, "/compare_with"),
        ({"priority": "urgent"}, "/priority"),
        ({"limits": {"max_seconds": 0}}, "/limits/max_seconds"),
        ({"resources": {"gpus": 0}}, "/resources/gpus"),
        ({"resources": {"gpus": 9}}, "/resources/gpus"),
        ({"resources": {"gpus": True}}, "/resources/gpus"),
        ({"resources": {"gpu": 1}}, "/resources/gpu"),
        ({"type": "predict", "resources": {"gpus": 2}}, "/resources"),
        ({"label_version": 9}, "/label_version"),
        ({"tags": {"a": 1}}, "/tags/a"),
        ({"tags": {str(n): "x" for n in range(33)}}, "/tags"),
        ({"name": "x" * 201}, "/name"),
        ({"type": "dance"}, "/type"),
        ({"type": "predict", "split": "half"}, "/split"),
        ({"batch_size": 1}, "/batch_size"),
        ({"layer_decay": 0}, "/layer_decay"),
        ({"crop_scale": 0}, "/crop_scale"),
        ({"randaugment": 31}, "/randaugment"),
        ({"color_jitter": 1.5}, "/color_jitter"),
        ({"mixup": -1}, "/mixup"),
        ({"pretrained": True, "tune": "last", "randaugment": 9}, "/randaugment"),
        ({"method": "dividemix", "mixup": 0.2}, "/mixup"),
        ({"method": "denll", "params": {"host": "elr_plus"}, "mixup": 0.2}, "/mixup"),
        ({"method": "ce", "compare_with": ["elr", "mixup"], "mixup": 0.2}, "/mixup"),
    ],
)
def test_J1_J2_what_is_wrong_is_named_by_its_pointer(
    client: Client, dataset_id: str, fields: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/jobs", json={"dataset_id": dataset_id, **fields})
    assert answer.status_code == 422, answer.text
    assert pointer in [fault["pointer"] for fault in answer.json()["errors"]], answer.text
    assert jobs(client) == 0


def test_known_noise_is_asked_for_by_rate_or_by_matrix(client: Client, dataset_id: str) -> None:
    for noise in ({"kind": "confounded", "rate": 0.3}, {"kind": "transition", "matrix": [[0.9, 0.1], [0, 1]]}):
        job = client.post("/jobs", json={"dataset_id": dataset_id, "noise": noise}).json()
        assert job["request"]["noise"] == {"rate": None, "matrix": None} | noise
    assert jobs(client) == 2


@BOTH
def test_a_job_and_its_baselines_wait_for_a_host_with_their_devices(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    large = submit(resources={"gpus": 2}, compare_with=["ce"])
    small = submit(priority="low")
    assert (large["resources"], large["request"]["resources"]) == ({"gpus": 2}, {"gpus": 2})
    assert (small["resources"], small["request"]["resources"]) == ({"gpus": 1}, {"gpus": 1})
    baseline = client.get(f"/jobs/{large['comparison'][1]['id']}").json()
    assert baseline["resources"] == baseline["request"]["resources"] == {"gpus": 2}

    claimed = fake_worker.claim()
    assert str(claimed.id) == small["id"]
    assert fake_worker.claim() is None
    assert [str(fake_worker.claim(devices=n).id) for n in (2, 3)] == [large["id"], baseline["id"]]


@BOTH
def test_a_job_that_needs_a_gpu_is_left_to_a_host_that_has_one(
    engine: Engine, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    """While none is known, anybody takes it, and it fails with the reason."""
    first, second, either = (submit(device=device)["id"] for device in ("cuda", "cuda", "auto"))
    assert str(fake_worker.claim(owner="without").id) == first
    with db.transaction(engine) as session:
        session.add(Worker(id="without", kind="supervisor", device="cpu", devices=1))
        session.add(Worker(id="with", kind="supervisor", device="cuda:0", devices=1))

    def waiting(owner: str) -> int:
        with db.transaction(engine) as session:
            return attempt.count_claimable(session, owner)

    assert (waiting("without"), waiting("with")) == (1, 2)
    assert [str(fake_worker.claim(owner=owner).id) for owner in ("without", "with")] == [either, second]


@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_more_devices_than_any_host_offers_are_refused_at_once(client: Client, dataset_id: str, dry_run: str) -> None:
    def post(gpus: int) -> Any:
        body = {"dataset_id": dataset_id, "resources": {"gpus": gpus}}
        return client.post(f"/jobs?dry_run={dry_run}", json=body)

    assert post(8).status_code in (200, 202)  # nobody is there to know better
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        session.add_all(
            [
                Worker(id="one", kind="supervisor", device="cuda:0", devices=2, draining=True),
                Worker(id="two", kind="supervisor", device="cuda", devices=1),
                Worker(id="checks data sets", kind="supervisor"),
                Worker(id="gone", kind="supervisor", device="cuda:0", devices=8, heartbeat_at=now(-3600.0)),
            ]
        )
    assert post(2).status_code in (200, 202)
    answer = post(3)
    assert (answer.status_code, [fault["pointer"] for fault in answer.json()["errors"]]) == (422, ["/resources/gpus"])
    assert "at most 2" in answer.json()["detail"]


def test_an_unknown_method_lists_those_there_are(client: Client, dataset_id: str) -> None:
    detail = client.post("/jobs", json={"dataset_id": dataset_id, "method": "denl"}).json()["detail"]
    assert "'denll'" in detail
    assert "ce" in detail


def test_a_data_set_that_is_missing_or_not_ready_is_a_404_or_409(client: Client, archive_bytes: bytes) -> None:
    missing = client.post("/jobs", json={"dataset_id": "00000000-0000-4000-8000-000000000000"})
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/dataset-not-found")
    queued = upload(client, archive_bytes).json()["id"]
    waiting = client.post("/jobs", json={"dataset_id": queued})
    assert (waiting.status_code, waiting.json()["type"]) == (409, "/problems/not-ready")


@BOTH
def test_compared_jobs_stand_side_by_side(client: Client, submit: Callable[..., Any], fake_worker: FakeWorker) -> None:
    job = submit(compare_with=["ce"], seed=7)
    assert [one["method"] for one in job["comparison"]] == ["denll", "ce"]
    fake_worker.publish(fake_worker.claim())
    comparison = client.get(f"/jobs/{job['id']}").json()["comparison"]
    assert [compared["status"] for compared in comparison] == ["succeeded", "queued"]
    baseline = client.get(f"/jobs/{comparison[1]['id']}").json()
    assert (baseline["compared_with_id"], baseline["request"]["seed"]) == (job["id"], 7)
    assert baseline["comparison"] == comparison


def test_scoring_a_data_set_is_a_job(client: Client, submit: Callable[..., Any], fake_worker: FakeWorker) -> None:
    submit()
    model_id = fake_worker.publish(fake_worker.claim())
    job = submit(type="predict", split="test")
    assert (job["type"], job["request"]["model_id"]) == ("predict", str(model_id))
    with db.transaction(fake_worker.engine) as session:
        spec = session.scalars(select(Job.spec).where(Job.type == "predict")).one()
    assert spec == {"model_id": str(model_id), "dataset_id": job["dataset_id"], "split": "test"}
    assert client.get("/jobs?type=predict").json()["items"][0]["id"] == job["id"]
    refused = client.delete(f"/models/{model_id}")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/in-use")


def test_F26_DEG4_a_full_queue_is_a_429(
    with_settings: Callable[..., Client], dataset_id: str, submit: Callable[..., Any]
) -> None:
    submit()
    full = with_settings(max_queued=1)
    answer = full.post("/jobs", json={"dataset_id": dataset_id})
    assert (answer.status_code, answer.json()["type"]) == (429, "/problems/queue-full")
    assert answer.headers["retry-after"]
    assert jobs(full) == 1


@BOTH
def test_F22_twenty_concurrent_requests_with_one_key_make_one_job(
    client: Client, live: Callable[..., LiveServer], dataset_id: str
) -> None:
    server = live()
    answers: list[httpx2.Response] = []

    def post() -> None:
        headers = {"Idempotency-Key": "once"}
        answers.append(httpx2.post(f"{server.url}/jobs", json={"dataset_id": dataset_id}, headers=headers, timeout=30))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {202, 409, 503}
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert len({answer.json()["id"] for answer in accepted}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in accepted) == 1
    assert jobs(client) == 1


@BOTH
def test_a_key_of_another_request_is_a_422_and_white_space_is_no_difference(client: Client, dataset_id: str) -> None:
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    body = {"dataset_id": dataset_id, "seed": 1}
    first = client.post("/jobs", content=json.dumps(body), headers=headers)
    spaced = client.post("/jobs", content=json.dumps(dict(reversed(body.items())), indent=3), headers=headers)
    assert (spaced.status_code, spaced.json()) == (202, first.json())
    assert spaced.headers["idempotency-replayed"] == "true"
    assert spaced.headers["location"] == first.headers["location"]
    other = client.post("/jobs", json={**body, "seed": 2}, headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["type"]) == (422, "/problems/idempotency-mismatch")
    assert "Idempotency-Key" in other.json()["detail"]
    refused = client.post("/jobs", json=body, headers={"Idempotency-Key": "a b"})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/header/Idempotency-Key")
    assert client.post("/jobs", json=body, headers={"Idempotency-Key": "x" * 256}).status_code == 422
    assert jobs(client) == 1


def test_a_key_with_and_without_quotes_is_one_key(client: Client, dataset_id: str) -> None:
    def post(key: str) -> Any:
        return client.post("/jobs", json={"dataset_id": dataset_id}, headers={"Idempotency-Key": key})

    first, bare, escaped, other = (post(key) for key in ('"k1"', "k1", '"k\\"1"', 'k"1'))
    assert (first.status_code, bare.headers["idempotency-replayed"], bare.json()) == (202, "true", first.json())
    assert (escaped.status_code, other.headers["idempotency-replayed"], other.json()) == (202, "true", escaped.json())
    assert jobs(client) == 2
    longest = "x" * 255
    assert post(f'"{longest}"').json() == post(longest).json()
    for malformed in ('"', '""', '"k1', '"k"1"', '"k\\1"', f'"{longest}x"'):
        refused = post(malformed)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/header/Idempotency-Key")


class RecordingNotifier(Notifier):
    """A notifier that records the queues it notifies; Redis is unavailable."""

    def __init__(self) -> None:
        self.queues: list[str] = []

    def notify(self, queue: QueueName) -> bool:
        self.queues.append(queue)
        return False

    def close(self) -> None:
        pass


def test_a_failing_commit_is_a_5xx_and_notifies_nobody(client: Client, dataset_id: str) -> None:
    client.app.state.notifier = recording = RecordingNotifier()  # type: ignore[attr-defined]

    def refuse(_: Session) -> None:
        raise RuntimeError("the commit failed")

    event.listen(Session, "before_commit", refuse)
    try:
        answer = client.post("/jobs", json={"dataset_id": dataset_id})
    finally:
        event.remove(Session, "before_commit", refuse)
    assert answer.status_code == 500
    assert (recording.queues, jobs(client)) == ([], 0)
    assert client.post("/jobs", json={"dataset_id": dataset_id}).status_code == 202
    assert recording.queues == ["jobs"]


def test_F07_the_answer_does_not_wait_for_a_broker_that_is_away(client: Client, submit: Callable[..., Any]) -> None:
    assert submit()["status"] == "queued"
    assert client.get("/readyz").json()["checks"]["broker"]["status"] == "degraded"


@BOTH
def test_F20_F21_cancelling_ends_a_queued_job_and_is_a_409_when_it_has_ended(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    cancelled = client.post(f"/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    again = client.post(f"/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/job-finished")
    other = submit()
    fake_worker.claim()
    requested = client.post(f"/jobs/{other['id']}/cancel")
    assert (requested.status_code, requested.json()["status"]) == (202, "cancelling")
    assert client.get("/jobs?status=cancelling").json()["items"][0]["id"] == other["id"]
    assert client.post("/jobs/00000000-0000-4000-8000-000000000000/cancel").status_code == 404


@BOTH
def test_F21_a_cancellation_that_races_with_completion_ends_a_job_once(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker, engine: Engine
) -> None:
    """The worker looks for a command, as a child does between steps, and publishes when there is none."""
    barrier = threading.Barrier(2)

    def work(claim: Any) -> None:
        barrier.wait(10)
        with db.transaction(engine, read_only=True) as session:
            command = attempt.read_command(session, claim.id, claim.fence)
        if command is None:
            fake_worker.publish(claim)
        else:
            with db.transaction(engine) as session:
                attempt.requeue(session, claim.id, claim.fence, counts=False, limit=3, reason="cancelled")

    with ThreadPoolExecutor(1) as pool:
        for _ in range(100):
            path, models = f"/jobs/{submit()['id']}", fake_worker.models()
            working = pool.submit(work, fake_worker.claim())
            barrier.wait(10)
            answer = client.post(f"{path}/cancel")
            working.result()
            ended = client.get(path).json()
            done = [line for line in client.get(f"{path}/events").text.splitlines() if line == "event: done"]
            late = client.post(f"{path}/cancel")

            assert (answer.status_code, ended["status"]) in {(202, "cancelled"), (202, "succeeded"), (409, "succeeded")}
            assert fake_worker.models() - models == (1 if ended["status"] == "succeeded" else 0)
            assert len(done) == 1
            assert late.status_code == 409
            assert client.get(path).json()["status"] == ended["status"]


@BOTH
def test_retry_is_for_failed_and_cancelled_jobs(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    path = f"/jobs/{job['id']}"
    assert client.post(f"{path}/retry").json()["type"] == "/problems/job-not-finished"
    claim = fake_worker.claim()
    fake_worker.epochs(claim, 3)
    fake_worker.fail(claim)
    failed = client.get(path).json()
    assert (failed["status"], failed["error"]["code"], failed["error"]["hint"]) == ("failed", "diverged", "lower it")
    assert failed["error"]["type"] == "/problems/diverged"
    resumed = client.post(f"{path}/retry")
    assert (resumed.status_code, resumed.json()["status"], resumed.json()["error"]) == (202, "queued", None)
    assert client.get(f"{path}/metrics").json()["epoch"] == [1, 2, 3]
    fake_worker.fail(fake_worker.claim())
    assert client.post(f"{path}/retry", json={"from": "scratch"}).status_code == 202
    assert client.get(f"{path}/metrics").json()["epoch"] == []
    with db.transaction(fake_worker.engine) as session:
        assert session.scalars(select(Job.restart_from)).one() == 2
    fake_worker.publish(fake_worker.claim())
    assert client.post(f"{path}/retry").json()["type"] == "/problems/job-finished"
    assert client.post(f"{path}/retry", json={"from": "mars"}).status_code == 422


@BOTH
def test_a_job_whose_data_set_was_deleted_stays_as_it_ended(
    client: Client, dataset_id: str, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    path = f"/jobs/{submit()['id']}"
    fake_worker.fail(fake_worker.claim())
    assert client.delete(f"/datasets/{dataset_id}").status_code == 204
    before = client.get(path).json()
    answer = client.post(f"{path}/retry", json={"from": "scratch"})
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/dataset-deleted")
    assert client.get(path).json() == before


@BOTH
def test_patch_changes_what_is_sent_and_nothing_else(client: Client, submit: Callable[..., Any]) -> None:
    job = submit(name="a", tags={"team": "x"})
    path = f"/jobs/{job['id']}"
    changed = client.patch(path, json={"priority": "high"}).json()
    assert (changed["name"], changed["tags"], changed["priority"]) == ("a", {"team": "x"}, "high")
    assert client.patch(path, json={"name": None}).json()["name"] is None
    assert client.patch(path, json={"status": "succeeded"}).status_code == 422


@BOTH
def test_a_job_is_deleted_when_it_has_ended_and_its_model_stays(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker, files: Storage
) -> None:
    job = submit()
    path = f"/jobs/{job['id']}"
    assert client.delete(path).json()["type"] == "/problems/job-not-finished"
    claim = fake_worker.claim()
    files.attempt(claim.id, claim.fence).mkdir(parents=True)
    model_id = fake_worker.publish(claim)
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert not files.job(claim.id).exists()
    assert client.get(f"/models/{model_id}").json()["job_id"] is None


def stream(text: str) -> list[tuple[int, str, Any]]:
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in fields:
            events.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return events


@BOTH
def test_events_replay_from_any_id_and_end_with_done(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    path = f"/jobs/{job['id']}/events"
    claim = fake_worker.claim()
    fake_worker.epochs(claim, 3)
    fake_worker.publish(claim)
    everything = stream(client.get(path).text)
    kinds = [kind for _, kind, _ in everything]
    assert kinds == ["status", "status", "metric", "metric", "metric", "log", "status", "done"]
    middle = everything[3][0]
    assert stream(client.get(path, headers={"Last-Event-ID": str(middle)}).text) == everything[4:]
    ended = client.get(path, headers={"Last-Event-ID": str(everything[-1][0])})
    assert (ended.status_code, ended.content) == (204, b"")
    assert client.get(path, headers={"Last-Event-ID": "x"}).status_code == 422
    assert client.head(path).status_code == 200


def test_an_earlier_done_ends_no_stream(client: Client, submit: Callable[..., Any], fake_worker: FakeWorker) -> None:
    job = submit()
    fake_worker.fail(fake_worker.claim())
    client.post(f"/jobs/{job['id']}/retry")
    fake_worker.publish(fake_worker.claim())
    kinds = [kind for _, kind, _ in stream(client.get(f"/jobs/{job['id']}/events").text)]
    assert kinds.count("done") == 1
    assert kinds[-1] == "done"


def test_events_arrive_while_the_job_runs_with_heartbeats_between(
    live: Callable[..., LiveServer], submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    claim = fake_worker.claim()
    server = live(event_heartbeat_s=0.05)
    seen: list[str] = []
    with httpx2.stream("GET", f"{server.url}/jobs/{job['id']}/events", timeout=20) as response:
        for line in response.iter_lines():
            seen.append(line)
            if line.startswith(": still here") and claim:
                fake_worker.epochs(claim, 1)
                fake_worker.publish(claim)
                claim = None
            if line == "event: done":
                break
    assert ": still here" in seen
    assert "event: metric" in seen


@BOTH
def test_a_job_that_ends_while_its_stream_reads_still_sends_done(
    engine: Engine, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    """Its end is committed between the query of its state and the query of its events."""
    job_id = uuid.UUID(submit()["id"])
    running = [fake_worker.claim()]

    def end_job(*arguments: Any) -> None:
        if running and "job_event.data" in arguments[2]:
            fake_worker.fail(running.pop())

    async def read() -> str:
        reader = EventReader(engine)
        lines = stream_events(reader, EventPoller(reader, 0.02), job_id, 0, heartbeat_s=0.5)
        return b"".join([part async for part in lines]).decode()

    event.listen(engine, "before_cursor_execute", end_job)
    assert [kind for _, kind, _ in stream(asyncio.run(read()))] == ["status", "status", "status", "done"]


@BOTH
def test_many_streams_query_the_table_as_often_as_one(
    engine: Engine, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job_id = uuid.UUID(submit()["id"])
    claim = fake_worker.claim()
    statements: list[str] = []

    async def read(reader: EventReader, poller: EventPoller) -> str:
        return b"".join([part async for part in stream_events(reader, poller, job_id, 0, heartbeat_s=60.0)]).decode()

    async def together() -> list[str]:
        reader, loop, often = EventReader(engine), asyncio.get_running_loop(), asyncio.Event()
        poller = EventPoller(reader, 0.02)

        def record(*arguments: Any) -> None:
            statements.append(arguments[2])
            if sum("max(" in statement for statement in statements) == 5:
                loop.call_soon_threadsafe(often.set)

        event.listen(engine, "before_cursor_execute", record)
        async with asyncio.timeout(30):
            readers = [asyncio.create_task(read(reader, poller)) for _ in range(20)]
            await often.wait()
            assert sum("job_event.data" in s for s in statements) == 1  # when they start, for all together
            await asyncio.to_thread(fake_worker.fail, claim)
            return await asyncio.gather(*readers)

    streams = asyncio.run(together())
    assert [kind for _, kind, _ in stream(streams[0])] == ["status", "status", "status", "done"]
    assert streams == [streams[0]] * 20


@BOTH
def test_metrics_are_columns_thinned_out_evenly(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    job = submit()
    fake_worker.epochs(fake_worker.claim(), 101)
    body = client.get(f"/jobs/{job['id']}/metrics?max_points=5").json()
    assert body["epoch"] == [1, 26, 51, 76, 101]
    assert body["series"]["test.answer.accuracy"][-1] == 1
    assert {len(column) for column in body["series"].values()} == {5}
    assert body["total_points"] == 101


def test_series_keep_first_and_last() -> None:
    assert results.space_evenly(3, 10) == [0, 1, 2]
    assert results.space_evenly(10, 1) == [9]
    assert results.space_evenly(1000, 3) == [0, 500, 999] or results.space_evenly(1000, 3)[::2] == [0, 999]


def test_logs_are_text_or_ndjson_of_all_attempts(
    client: Client, submit: Callable[..., Any], fake_worker: FakeWorker, files: Storage
) -> None:
    job = submit()
    claim = fake_worker.claim()
    for fence in (1, 2):
        folder = files.attempt(claim.id, fence)
        folder.mkdir(parents=True)
        line = {"time": "2026-01-01T00:00:00", "level": "INFO", "message": f"attempt {fence}", "request_id": "r"}
        (folder / "log.jsonl").write_text(json.dumps(line) + "\n" + '{"cut')
    path = f"/jobs/{job['id']}/logs"
    assert "INFO    attempt 1" in client.get(path).text
    lines = client.get(path, headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert json.loads(lines[0])["message"] == "attempt 1"
    assert client.get(f"{path}?attempt=2&last=1").text == '{"cut\n'


@pytest.fixture
def finished(client: Client, submit: Callable[..., Any], fake_worker: FakeWorker, files: Storage) -> str:
    """A succeeded job with a ranking and an artifact."""
    job = submit()
    claim = fake_worker.claim()
    folder = files.attempt(claim.id, claim.fence) / "artifacts"
    folder.mkdir(parents=True)
    right = ImageResult(0, "a.jpg", "train", 0, False, 0, 0, 0.9, False, cx=20, cy=15, sigma_x=5, sigma_y=4)
    wrong = ImageResult(1, "=b.jpg", "train", 1, False, 1, 0, 0.1, True, 1, None, 0.7, 0.3)
    image_results.write(folder / image_results.FILE_NAME, ["cat", "dog"], [right, wrong])
    (folder / "figure.png").write_bytes(bytes(range(256)) * 4)
    fake_worker.publish(claim)
    job_id: str = job["id"]
    return job_id


def test_an_estimate_goes_by_the_speed_of_an_earlier_job_of_its_kind(
    client: Client, finished: str, dataset_id: str
) -> None:
    assert client.get(f"/jobs/{finished}").json()["model_id"]
    alike, other = (
        client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, **fields}).json()["estimate"]
        for fields in ({}, {"image_size": 256})
    )
    assert (alike["measured"], alike["images_per_second"]) == (True, 250.0)
    assert not other["measured"]


def test_label_issues_come_worst_first_in_cleanlab_s_words(client: Client, finished: str) -> None:
    path = f"/jobs/{finished}/label-issues"
    body = client.get(path).json()
    assert (body["total"], body["issues"]) == (2, 1)
    worst, best = body["items"]
    assert (worst["index"], worst["is_label_issue"], worst["label_score"], worst["mask"]) == (1, True, 0.1, None)
    assert worst["path"] == "=b.jpg"
    assert best["mask"]["gaussian"] == {"cx": 20.0, "cy": 15.0, "sigma_x": 5.0, "sigma_y": 4.0}
    page = client.get(f"{path}?limit=1").json()
    assert client.get(path, params={"limit": 1, "cursor": page["next_cursor"]}).json()["items"] == [best]
    assert client.get(f"{path}?is_label_issue=false").json()["items"] == [best]
    table = list(csv.DictReader(io.StringIO(client.get(path, headers={"Accept": "text/csv"}).text)))
    assert [(row["index"], row["path"], row["is_label_issue"]) for row in table] == [
        ("1", "'=b.jpg", "true"),
        ("0", "a.jpg", "false"),
    ]
    dataset = client.get(f"/jobs/{finished}").json()["dataset_id"]
    flagged = client.get(f"/datasets/{dataset}/images?is_label_issue=true").json()["items"]
    assert [image["index"] for image in flagged] == [1]


def test_a_job_without_a_ranking_says_so(client: Client, submit: Callable[..., Any]) -> None:
    answer = client.get(f"/jobs/{submit()['id']}/label-issues")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/artifact-not-found")


@pytest.mark.parametrize(
    ("byte_range", "status", "part"),
    [
        (None, 200, slice(0, 1024)),
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=1000-", 206, slice(1000, 1024)),
        ("bytes=-24", 206, slice(1000, 1024)),
        ("bytes=-9999", 206, slice(0, 1024)),
        ("bytes=0-99999", 206, slice(0, 1024)),
        ("bytes=9-2", 200, slice(0, 1024)),
        ("bytes=0-1,3-4", 200, slice(0, 1024)),
        ("bytes=" + "0-," * 5000, 200, slice(0, 1024)),
        ("lines=0-1", 200, slice(0, 1024)),
        ("bytes=--1", 200, slice(0, 1024)),
        ("bytes=1024-", 416, None),
        ("bytes=-0", 416, None),
    ],
)
def test_H6_artifacts_come_whole_or_in_one_range(
    client: Client, finished: str, byte_range: str | None, status: int, part: slice | None
) -> None:
    content = bytes(range(256)) * 4
    answer = client.get(f"/jobs/{finished}/artifacts/figure.png", headers={"Range": byte_range} if byte_range else {})
    assert answer.status_code == status
    if part is not None:
        assert answer.content == content[part]
        assert answer.headers["repr-digest"].startswith("sha-256=:")
    else:
        assert answer.headers["content-range"] == "bytes */1024"


def test_artifacts_are_listed_with_checksums_and_named_exactly(client: Client, finished: str) -> None:
    items = {item["name"]: item for item in client.get(f"/jobs/{finished}/artifacts").json()["items"]}
    assert {"figure.png", "image-results.sqlite", "model.zip"} <= items.keys()
    assert len(items["figure.png"]["sha256"]) == 64
    for name in ("nothing.png", "..%2f..%2fsecret", "%2e%2e", "log.jsonl", ".hidden"):
        assert client.get(f"/jobs/{finished}/artifacts/{name}").status_code == 404


def test_a_file_that_is_deleted_after_it_was_looked_up_is_a_404(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFound):
        file_responses.size_and_sha256(tmp_path / "model.zip")


def test_static_names_are_never_paths(client: Client, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    assert client.get(f"/static/{tmp_path}/secret.txt").status_code == 404


class FinishedRun(NamedTuple):
    """A training that has ended: its fields beside the data set, and how long it took."""

    fields: dict[str, Any]
    seconds: float


@pytest.fixture
def finish(client: Client, dataset_id: str, fake_worker: FakeWorker) -> Callable[[FinishedRun], None]:
    """A function that makes a job which has ended after so many seconds."""

    def run(finished: FinishedRun) -> None:
        client.post("/jobs", json={"dataset_id": dataset_id, **finished.fields}).raise_for_status()
        claim = fake_worker.claim()
        fake_worker.publish(claim)
        with db.transaction(fake_worker.engine) as session:
            job = session.get_one(Job, claim.id)
            assert job.finished_at is not None
            job.started_at = job.finished_at - timedelta(seconds=finished.seconds)

    return run


@BOTH
def test_a_dry_run_says_the_time_that_similar_finished_jobs_took(
    client: Client, dataset_id: str, finish: Callable[[FinishedRun], None]
) -> None:
    """Closest first: the same kind, then the network, then anything; a slow host is slow for other methods as well."""

    def estimated(**fields: Any) -> dict[str, Any]:
        body = {"dataset_id": dataset_id, "network": "resnet18", "image_size": 32, "epochs": 2000, **fields}
        answer = client.post("/jobs?dry_run=true", json=body).json()
        return answer["estimate"]["jobs"][0]  # type: ignore[no-any-return]

    unknown = {method: estimated(method=method)["seconds"] for method in ("ce", "elr_plus")}
    assert not estimated(method="ce")["measured"]
    assert estimated(method="ce")["similar_jobs"] == []
    took = 10 * unknown["ce"]
    fields = {"method": "ce", "network": "resnet18", "image_size": 32}
    finish(FinishedRun({**fields, "epochs": 2000}, took))

    same, other = estimated(method="ce"), estimated(method="elr_plus")
    assert same["measured"]
    assert same["seconds"] == pytest.approx(took, rel=0.01)
    assert estimated(method="ce", epochs=1000)["seconds"] == pytest.approx(took / 2, rel=0.05)
    assert not other["measured"]
    assert other["seconds"] == pytest.approx(10 * unknown["elr_plus"], rel=0.1)
    assert other["similar_jobs"] == ["network", "image_size", "tune"]

    for slower in (4, 6, 900):  # the median: one job that waited long for the machine does not count
        finish(FinishedRun({**fields, "method": "elr_plus", "epochs": 2000}, slower * took))
    assert estimated(method="elr_plus")["seconds"] == pytest.approx(6 * took, rel=0.01)
    assert estimated(method="ce")["seconds"] == pytest.approx(took, rel=0.01)


def test_a_dry_run_counts_its_baselines_and_the_limits_of_each(
    client: Client, dataset_id: str, finish: Callable[[FinishedRun], None]
) -> None:
    fields = {"network": "small", "image_size": 32, "epochs": 100}
    finish(FinishedRun({"method": "ce", **fields}, 50.0))
    finish(FinishedRun({"method": "elr", **fields}, 200.0))
    body = {"dataset_id": dataset_id, "method": "ce", **fields}

    def dry_run(**more: Any) -> dict[str, Any]:
        return client.post("/jobs?dry_run=true", json={**body, **more}).json()  # type: ignore[no-any-return]

    alone, compared = dry_run()["estimate"], dry_run(compare_with=["elr"])["estimate"]
    assert alone["exceeds_limits"] is None
    assert alone["seconds"] == pytest.approx(50, rel=0.02)
    assert [job["method"] for job in compared["jobs"]] == ["ce", "elr"]
    assert compared["seconds"] == pytest.approx(250, rel=0.02)
    assert compared["disk_bytes"] == sum(job["disk_bytes"] for job in compared["jobs"])
    assert compared["memory_bytes"] == max(job["memory_bytes"] for job in compared["jobs"])

    limited = dry_run(compare_with=["elr"], limits={"max_seconds": 100})
    assert limited["estimate"]["exceeds_limits"] is True
    (warning,) = limited["warnings"]
    assert (warning["kind"], warning["pointer"]) == ("time_limit", "/limits/max_seconds")
    assert "elr takes about 200 s; the limit is 100 s" in warning["detail"]
    enough = dry_run(compare_with=["elr"], limits={"max_seconds": 300})
    assert (enough["estimate"]["exceeds_limits"], enough["warnings"]) == (False, [])
    assert jobs(client) == 2


def test_a_dry_run_warns_of_memory_that_the_host_does_not_have(client: Client, dataset_id: str) -> None:
    """By the largest host that trains on such a device; what a GPU has is not known."""
    body = {"dataset_id": dataset_id, "network": "resnet18", "image_size": 224, "batch_size": 128, "device": "cpu"}

    def dry_run(**more: Any) -> dict[str, Any]:
        return client.post("/jobs?dry_run=true", json={**body, **more}).json()  # type: ignore[no-any-return]

    unknown = dry_run()
    assert (unknown["warnings"], unknown["estimate"]["host_memory_bytes"]) == ([], None)
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        for name, memory, device, age in (
            ("small", 2 * 10**9, "cpu", 0.0),
            ("large", 4 * 10**9, "cpu", 0.0),
            ("gone", 10**12, "cpu", -100.0),
            ("gpu", 10**12, "cuda", 0.0),
        ):
            host = {"memory_bytes": memory, "cpus": 2, "bf16": None}
            session.add(Worker(id=name, kind="supervisor", device=device, devices=1, host=host, heartbeat_at=now(age)))
    refused = dry_run()
    (warning,) = refused["warnings"]
    assert refused["estimate"]["host_memory_bytes"] == 4 * 10**9
    assert (warning["kind"], warning["pointer"]) == ("memory", "/batch_size")
    assert "the host has 4.0 GB" in warning["detail"]
    assert "batch_size" in warning["hint"]
    assert dry_run(batch_size=8)["warnings"] == []
    assert dry_run(device="cuda")["warnings"] == []


def test_a_dry_run_warns_of_a_gpu_that_no_host_has(client: Client, dataset_id: str) -> None:
    def warnings() -> list[dict[str, str]]:
        body = {"dataset_id": dataset_id, "method": "ce", "network": "small", "device": "cuda"}
        return client.post("/jobs?dry_run=true", json=body).json()["warnings"]  # type: ignore[no-any-return]

    def add_supervisor(device: str) -> None:
        with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
            session.add(Worker(id=device, kind="supervisor", device=device, devices=1, heartbeat_at=now()))

    assert warnings() == []  # while no supervisor runs, nothing is known
    add_supervisor("cpu")
    (warning,) = warnings()
    assert (warning["kind"], warning["pointer"]) == ("device", "/device")
    assert "auto" in warning["hint"]
    add_supervisor("cuda:0")
    assert warnings() == []


def test_images_larger_than_the_hosts_memory_are_no_reason_to_warn(client: Client, dataset_id: str) -> None:
    """They are streamed: what counts is what a training holds beside them."""
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        host = {"memory_bytes": 8 * 10**9, "cpus": 2, "bf16": None}
        session.add(Worker(id="w", kind="supervisor", device="cpu", devices=1, host=host, heartbeat_at=now()))
        dataset = session.get_one(Dataset, uuid.UUID(dataset_id))
        dataset.facts = {**(dataset.facts or {}), "train_images": 10**6, "test_images": 0}
    body = {"dataset_id": dataset_id, "method": "ce", "network": "small", "batch_size": 64}

    def dry_run(**more: Any) -> dict[str, Any]:
        return client.post("/jobs?dry_run=true", json={**body, **more}).json()  # type: ignore[no-any-return]

    large, small = dry_run(image_size=64), dry_run(image_size=32)  # 12.3 and 3.1 GB
    for answer, streamed in ((large, True), (small, False)):
        assert [warning["kind"] for warning in answer["warnings"] if warning["kind"] == "memory"] == []
        assert [job["images_streamed"] for job in answer["estimate"]["jobs"]] == [streamed]
    assert large["estimate"]["memory_bytes"] < small["estimate"]["memory_bytes"] < 8 * 10**9
    assert dry_run(image_size=64, device="cuda")["estimate"]["jobs"][0]["images_streamed"] is None


def test_DEG5_a_queued_job_says_that_it_waits_for_disk(
    with_settings: Callable[..., Client], submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    running = submit()["id"]
    fake_worker.claim()
    waiting = submit()["id"]
    full = with_settings(min_free_bytes=2**62)

    assert full.get(f"/jobs/{waiting}").json()["waiting_for"] == "disk"
    listed = {job["id"]: job["waiting_for"] for job in full.get("/jobs").json()["items"]}
    assert listed == {running: None, waiting: "disk"}
    enough = with_settings(min_free_bytes=0)
    assert enough.get(f"/jobs/{waiting}").json()["waiting_for"] is None
