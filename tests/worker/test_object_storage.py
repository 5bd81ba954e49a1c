"""The whole service on hosts that share nothing but the database, the broker and an object store.

The processes are real and so is the store; that hosts share no file is what their data folders are for.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image
from sqlalchemy import update

from app.db.session import transaction
from app.db.tables import Dataset, Job, LabelVersion, Model, State
from app.settings import Settings
from app.shared_storage import CACHE, open_storage
from app.storage import Storage
from tests import servers
from tests.servers import S3Server, eventually, free_port
from tests.worker.harness import SIDE, ServiceHarness, pictures
from worker import backup

SKIPPED = servers.missing_for_s3()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(SKIPPED is not None, reason=SKIPPED or "")]
TRAINING = {
    "method": "ce", "network": "small", "epochs": 3, "batch_size": 16, "image_size": SIDE, "seed": 1,
    "precision": "f32", "validation_fraction": 0.25,
}  # fmt: skip
LONG = {**TRAINING, "epochs": 60}


class Hosts(ServiceHarness):
    """A service whose every process has a data folder of its own."""

    client: httpx.Client
    port: int

    def host(self, name: str) -> Path:
        """The data folder of a host."""
        return self.folder.parent / name

    def storage(self, name: str) -> Storage:
        """The storage as a process of this host sees it."""
        return open_storage(self.settings.model_copy(update={"data_dir": self.host(name)}))

    def train(self, name: str) -> Any:
        """Have a host train."""
        return self.supervisor("jobs", data_dir=self.host(name))

    def wait(self, path: str, *states: str, seconds: float = 60.0) -> dict[str, Any]:
        """A resource once it has one of these states."""

        def reached() -> dict[str, Any] | None:
            body: dict[str, Any] = self.client.get(path).json()
            return body if body["status"] in states else None

        try:
            body = eventually(reached, seconds=seconds)
        except AssertionError:
            raise AssertionError(f"{self.client.get(path).text}\n{self.logs()}") from None
        assert body is not None
        return body

    def upload(self) -> str:
        """A ready data set, by way of the API and a host that checks it."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, _, data in pictures(48):
                archive.writestr(f"train/{name}", data)
        headers = {"Content-Type": "application/zip"}
        answer = self.client.post("/datasets?name=pets", content=out.getvalue(), headers=headers)
        assert answer.status_code == 202, answer.text
        dataset_id: str = answer.json()["id"]
        self.wait(f"/datasets/{dataset_id}", "ready")
        return dataset_id

    def post_job(self, dataset_id: str, **fields: Any) -> str:
        answer = self.client.post("/jobs", json={"dataset_id": dataset_id, **fields})
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with servers.s3_server() as server:
        yield server


@pytest.fixture
def hosts(tmp_path: Path, s3: S3Server, postgres_server: str, redis_url: str) -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(servers.fresh_database(postgres_server))
        hosts = Hosts(tmp_path, url, redis_url, **s3.settings)
        stack.callback(hosts.close)
        hosts.port = free_port()
        address = f"tcp://127.0.0.1:{free_port()}"
        hosts.start("app.main", data_dir=hosts.host("api"), port=hosts.port, inference_addresses=address)
        hosts.start("worker.inference", data_dir=hosts.host("inference"), inference_listen=address)
        hosts.supervisor("datasets", data_dir=hosts.host("ingest"))
        hosts.dispatcher(data_dir=hosts.host("dispatcher"))
        hosts.client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{hosts.port}", timeout=30.0))
        eventually(lambda: answers(hosts.client), seconds=40.0, what=f"the API\n{hosts.logs()}")
        yield hosts


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_everything_is_read_on_a_host_that_has_not_made_it(hosts: Hosts, tmp_path: Path) -> None:
    dataset, client = hosts.upload(), hosts.client
    hosts.train("training")

    # Browse what another host has checked: lists by the index, images and thumbnails by ranges.
    page = client.get(f"/datasets/{dataset}/images").json()
    original = client.get(f"/datasets/{dataset}/images/0").content
    assert original == next(data for name, _, data in pictures(48) if page["items"][0]["path"].endswith(name))
    with Image.open(io.BytesIO(client.get(f"/datasets/{dataset}/images/5/thumbnail").content)) as thumbnail:
        assert thumbnail.format == "PNG"
    (copy,) = (hosts.host("api") / CACHE).glob("*/index.sqlite")
    assert [path.name for path in copy.parent.iterdir()] == ["index.sqlite"], "no more was copied than was needed"

    # Train, and read the results.
    job = hosts.post_job(dataset, **TRAINING)
    model = hosts.wait(f"/jobs/{job}", "succeeded", "failed")["model_id"]
    assert model is not None, client.get(f"/jobs/{job}").text
    listed = {item["name"]: item for item in client.get(f"/jobs/{job}/artifacts").json()["items"]}
    results = client.get(f"/jobs/{job}/artifacts/metrics.jsonl")
    assert results.content.count(b"\n") == TRAINING["epochs"]
    assert listed["metrics.jsonl"]["size_bytes"] == len(results.content)
    assert client.get(f"/jobs/{job}/label-issues").json()["total"] == 48
    eventually(lambda: "first step" in client.get(f"/jobs/{job}/logs").text, seconds=20.0, what="the log")
    export = client.get(f"/models/{model}/export")
    assert zipfile.ZipFile(io.BytesIO(export.content)).testzip() is None

    # Predict by bytes and by reference.
    answer = client.post("/predict", content=original, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    answer = client.get(f"/predict?image=dataset:{dataset}/0")
    assert answer.status_code == 200, answer.text

    # Correct labels here, train on them there.
    image = page["items"][0]
    other = next(name for name in ("circle", "stripe") if name != image["given_label"])
    edit = {"action": "relabel", "image": image["index"], "from": image["given_label"], "to": other}
    made = client.post(f"/datasets/{dataset}/labels", json={"edits": [edit]})
    assert (made.status_code, made.json()["version"]) == (201, 2), made.text
    again = client.post(f"/jobs/{job}/retrain", json={}).json()["id"]
    done = hosts.wait(f"/jobs/{again}", "succeeded", "failed")
    assert (done["status"], done["metrics"]["label_version"]) == ("succeeded", 2)
    assert client.get(f"/comparisons?job={job}&job={again}").status_code == 200
    scored = hosts.post_job(dataset, type="predict", model=model)
    hosts.wait(f"/jobs/{scored}", "succeeded", "failed")
    assert b"predicted_label" in client.get(f"/jobs/{scored}/artifacts/predictions.csv").content
    exported = client.get(f"/datasets/{dataset}/export")
    assert len(zipfile.ZipFile(io.BytesIO(exported.content)).namelist()) >= 48

    # A backup has all of it, and is restored where there is no object store.
    target = tmp_path / "backup"
    manifest = backup.create(hosts.settings, target)
    assert manifest["missing"] == []
    assert (target / "files" / "datasets" / dataset / "labels" / "2.sqlite").is_file()
    assert (target / "files" / "models" / model / "model.zip").is_file()

    # What is deleted is gone for every host, and nothing of it stays in the store.
    for path in (f"/jobs/{scored}", f"/jobs/{again}", f"/jobs/{job}", f"/datasets/{dataset}"):
        assert client.delete(path).status_code == 204
    store = hosts.storage("api")
    folders = [store.root / name for name in ("datasets", "jobs", "uploads")]
    eventually(lambda: not [path for folder in folders for path in store.published(folder)], what="deletion")
    reference = f"/predict?image=dataset:{dataset}/0"
    eventually(lambda: "dataset_not_found" in client.get(reference).text, what="that a copy is not believed")


def test_a_job_continues_on_another_host(hosts: Hosts) -> None:
    dataset = hosts.upload()
    undisturbed = hosts.post_job(dataset, **LONG)
    first = hosts.train("one")
    digest = hosts.client.get(f"/models/{hosts.wait(f'/jobs/{undisturbed}', 'succeeded')['model_id']}").json()["digest"]
    job = uuid.UUID(hosts.post_job(dataset, **LONG))
    hosts.until(job, lambda row: (row.checkpoint_step or 0) >= 6)
    os.kill(first.pid, signal.SIGKILL)

    hosts.train("two")
    done = hosts.ended(job, 90.0)

    assert (done.state, done.attempt) == (State.succeeded, 2), hosts.logs()
    assert [model.digest for model in hosts.models(job)] == [digest]
    assert any("Resumed at step" in event.data["message"] for event in hosts.history(job, "log"))
    store = hosts.storage("api")
    eventually(  # they are deleted when the job has ended
        lambda: not [path for path in store.published(store.job(job)) if "checkpoints" in path.parts],
        what="the end of the checkpoints",
    )


def test_F32_an_attempt_that_loses_the_store_is_repeated_and_not_held_against_the_job(
    tmp_path: Path, postgres_server: str, redis_url: str
) -> None:
    """One attempt that counted would fail this job. Meanwhile queued work waits, and is not tried again and again."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(servers.s3_server())
        url = stack.enter_context(servers.fresh_database(postgres_server))
        hosts = Hosts(tmp_path, url, redis_url, **server.settings, max_attempts_without_progress=1)
        stack.callback(hosts.close)
        hosts.train("one")
        job = hosts.submit(hosts.dataset(), epochs=40)
        hosts.until(job, lambda row: row.checkpoint_step is not None)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            hosts.until(job, lambda row: row.state == State.queued, 120.0)
            fence = hosts.job(job).fence
        finally:
            os.kill(server.process.pid, signal.SIGCONT)

        done = hosts.ended(job, 90.0)
        assert done.state == State.succeeded, f"{done.error}\n{hosts.logs()}"
        assert hosts.reasons(job) == ["storage_unavailable"]
        assert done.fence == fence + 1
        assert len(hosts.models(job)) == 1


def test_a_backup_moves_a_service_into_an_object_store_and_out_of_it(
    tmp_path: Path, s3: S3Server, postgres_server: str, redis_url: str
) -> None:
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(servers.fresh_database(postgres_server)) for _ in range(2)]
        local = ServiceHarness(tmp_path / "one", urls[0], redis_url)
        stack.callback(local.close)
        fill(local)
        backup.create(local.settings, tmp_path / "first")

        shared = local.settings.model_copy(
            update={"data_dir": tmp_path / "two", "database_url": urls[1], **settings_of(s3)}
        )
        backup.restore(shared, tmp_path / "first", force=False)
        backup.create(shared, tmp_path / "second")

        assert files_of(tmp_path / "second") == files_of(tmp_path / "first")
        with pytest.raises(backup.BackupError, match="not empty"):
            backup.restore(shared, tmp_path / "second", force=False)
        backup.restore(shared, tmp_path / "second", force=True)
        files = open_storage(shared)
        folders = ("datasets", "jobs", "models", "uploads", "weights")
        assert [len(files.published(files.root / name)) for name in folders] == [2, 3, 1, 1, 2]
        (dataset,) = {path.name for path in files.published(files.root / "datasets") if len(path.name) == 36}
        assert (files.fetch_dataset(uuid.UUID(dataset), 2) / "labels" / "2.sqlite").read_bytes() == b"labels"


def settings_of(server: S3Server) -> dict[str, object]:
    """Settings of the store, as they are in `Settings`."""
    known = Settings(**server.settings)
    return {name: getattr(known, name) for name in server.settings}


def fill(harness: ServiceHarness) -> None:
    """One of everything that a backup has; files that nobody reads have any content."""
    dataset = harness.dataset()
    job = harness.submit(dataset)
    attempt = harness.files.attempt(job, 1)
    model = uuid.uuid4()
    with transaction(harness.engine) as session:
        session.execute(update(Job).where(Job.id == job).values(state=State.succeeded))
        session.add(
            LabelVersion(dataset_id=dataset, version=2, parent=1, source="edits", edits=1, counts={}, digest="0")
        )
        session.add(Dataset(id=uuid.UUID(int=1), name="waits", upload={}))
        session.add(
            Model(
                id=model, job_id=job, dataset_id=dataset, method="ce", network="small", classes=["a"], digest="0",
                size_bytes=1, metrics={}, spec={},
            )
        )  # fmt: skip
    for path, content in (
        (harness.files.dataset(dataset) / "labels" / "2.sqlite", b"labels"),
        (harness.files.upload(uuid.UUID(int=1)), b"upload"),
        (harness.files.model(model) / "model.zip", b"model"),
        (attempt / "artifacts" / "metrics.jsonl", b"artifact"),
        (attempt / "log.jsonl", b"log"),
        (attempt / "checkpoints" / "step-5" / "facts.json", b"checkpoint"),
        (harness.files.weights() / "small.safetensors", b"weights"),
        (harness.files.weights() / "small.json", b"record"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files_of(folder: Path) -> dict[str, bytes]:
    root = folder / "files"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
