"""The API on real databases: an application in this process, files in a temporary folder, and a fake worker."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import Engine

from app.catalog import Catalog
from app.datasets import archive_check, ingest_queue
from app.db import session as db
from app.db.tables import Job, Model
from app.http import connection
from app.jobs import attempt
from app.main import create_app
from app.settings import Settings
from app.storage import Storage
from ml.data import ingest
from tests import servers
from tests.servers import eventually, free_port
from tests.tables import create_tables

ADDRESS = "http://127.0.0.1:8000"


DOCUMENTS: dict[tuple[bool, bool], dict[str, Any]] = {}  # the OpenAPI document takes longer to make than most tests


class Client(TestClient):
    """Checks that every answer is one the OpenAPI document promises, in its media type."""

    def request(self, method: str, url: Any, **named: Any) -> Any:
        response = super().request(method, url, **named)
        check_documented(self.app, method, response)  # type: ignore[arg-type]
        return response


def check_documented(app: FastAPI, method: str, response: Any) -> None:
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json() if method != "HEAD" else {"status": response.status_code}
        assert problem["status"] == response.status_code
        if method != "HEAD":
            assert {"type", "title", "detail", "instance", "request_id"} <= problem.keys()
    operation = documented(app, response.request.url.path, "get" if method == "HEAD" else method.lower())
    if operation is None or (method == "HEAD" and response.status_code == 304):
        return
    promised = operation["responses"].get(str(response.status_code))
    assert promised is not None, f"{method} {response.request.url.path} answered an undocumented {response.status_code}"
    kind = response.headers.get("content-type", "").split(";")[0]
    if response.status_code not in (204, 304) and "content" in promised:
        assert kind in promised["content"], f"{method} {response.request.url.path}: {kind} not in {promised['content']}"


def documented(app: FastAPI, path: str, method: str) -> dict[str, Any] | None:
    key = (app.state.settings.key_required, app.state.settings.login_enabled)
    if key not in DOCUMENTS:
        DOCUMENTS[key] = app.openapi()
    paths = DOCUMENTS[key]["paths"]
    for template in sorted(paths, key=lambda t: t.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            operation: dict[str, Any] | None = paths[template].get(method)
            return operation
    return None


ADMIN = "a-bootstrap-key-for-tests"
BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """What can be trained, read once: an application that only reads it is many tests' own."""
    return Catalog.load()


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with every table and no row; to be copied, as making the tables takes longer."""
    path = tmp_path_factory.mktemp("tables") / "empty.sqlite"
    engine = db.connect(Settings(database_url=f"sqlite:///{path}"))
    create_tables(engine)
    engine.dispose()
    return path


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty SQLite database; tests of what a database decides are marked BOTH and see Postgres too."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.sqlite'}"
        return
    with servers.fresh_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, tables: Path) -> Settings:
    """Redis is unavailable (a port nobody listens at): nothing an answer says may depend on it."""
    if database_url.startswith("sqlite"):
        shutil.copy(tables, tmp_path / "test.sqlite")
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        inference_addresses=f"tcp://127.0.0.1:{free_port()}",
        connect_timeout_s=0.5,
        event_poll_s=0.02,
        min_free_bytes=0,
        warn_free_bytes=0,
        predict_deadline_s=3.0,
    )


@pytest.fixture
def with_settings(settings: Settings, catalog: Catalog) -> Iterator[Callable[..., Client]]:
    """A client of an application whose settings differ in this or that."""
    opened: list[Client] = []
    engine = db.connect(settings)
    create_tables(engine)
    engine.dispose()

    def start(**changed: Any) -> Client:
        app = create_app(Settings(**{**settings.model_dump(), **changed}), catalog)
        client = Client(app, base_url=ADDRESS, raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        return client

    yield start
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(with_settings: Callable[..., Client]) -> Client:
    return with_settings()


@pytest.fixture
def guarded(with_settings: Callable[..., Client]) -> Client:
    """A client of an application that asks for keys."""
    return with_settings(admin_key=ADMIN)


def bearer(key: str) -> dict[str, str]:
    """The header by which a request shows its key."""
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def engine(client: Client) -> Engine:
    engine: Engine = client.app.state.engine  # type: ignore[attr-defined]
    return engine


@pytest.fixture
def files(client: Client) -> Storage:
    storage: Storage = client.app.state.storage  # type: ignore[attr-defined]
    return storage


def jpeg(color: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, "JPEG")
    return out.getvalue()


def class_folders(images: int = 6) -> bytes:
    """A zip of two classes, with train and test, a broken picture and a stray file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive_:
        for n in range(images):
            for split in ("train", "test"):
                shade = n * 7 + (3 if split == "test" else 0)
                archive_.writestr(f"{split}/cat/{n}.jpg", jpeg((200, shade, 10)))
                archive_.writestr(f"{split}/dog/{n}.jpg", jpeg((10, shade, 200)))
        archive_.writestr("train/cat/broken.jpg", b"\xff\xd8\xff nothing more")
        archive_.writestr("train/cat/=cmd.txt", b"not a picture")
    return out.getvalue()


@pytest.fixture
def archive_bytes() -> bytes:
    return class_folders()


def upload(client: Client, data: bytes, **headers: str) -> Any:
    return client.post("/datasets?name=pets", content=data, headers={"Content-Type": "application/zip", **headers})


def ingest_it(client: Client, dataset_id: str) -> None:
    """What the worker does with a queued data set."""
    files: Storage = client.app.state.storage  # type: ignore[attr-defined]
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        claim = ingest_queue.claim(session, "test", 60)
        fields = ingest_queue.upload_options(session, uuid.UUID(dataset_id))
    assert claim is not None
    assert str(claim.id) == dataset_id
    folder = files.dataset(claim.id)
    folder.mkdir()
    files.upload(claim.id).rename(folder / "archive")
    settings: Settings = client.app.state.settings  # type: ignore[attr-defined]
    labels = archive_check.check_archive(folder / "archive", fields, settings)
    assert labels is not None
    facts = ingest.ingest(
        folder / "archive",
        labels.images,
        labels.classes,
        folder,
        report=labels.report,
        facts=labels.facts,
        bad_fraction=0.5,
        votes=labels.votes,
    )
    with db.transaction(client.app.state.engine) as session:  # type: ignore[attr-defined]
        assert ingest_queue.succeed(session, claim.id, claim.fence, facts)


@pytest.fixture
def dataset_id(client: Client, archive_bytes: bytes) -> str:
    """A data set that is ready."""
    answer = upload(client, archive_bytes)
    assert answer.status_code == 202, answer.text
    dataset_id: str = answer.json()["id"]
    ingest_it(client, dataset_id)
    return dataset_id


@dataclasses.dataclass
class FakeWorker:
    """What workers do to jobs, step by step."""

    engine: Engine
    files: Storage

    def claim(self, devices: int = 1, owner: str = "test") -> Any:
        with db.transaction(self.engine) as session:
            return attempt.claim(session, owner, 60, devices)

    def epochs(self, claim: Any, count: int) -> None:
        reports = [
            {"epoch": n, "train_loss": 2.0 - n / count, "test": {"answer": {"accuracy": n / count}}}
            for n in range(1, count + 1)
        ]
        with db.transaction(self.engine) as session:
            assert attempt.record_epochs(session, claim.id, claim.fence, reports)

    def publish(self, claim: Any, **metrics: Any) -> uuid.UUID:
        model_id = uuid.uuid4()
        folder = self.files.model(model_id)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        (folder / "model.zip").write_bytes(b"PK" + bytes(range(100)))
        with db.transaction(self.engine) as session:
            job = session.get(Job, claim.id)
            assert job is not None
            model = {
                "id": model_id,
                "dataset_id": job.dataset_id,
                "name": None,
                "method": job.request["method"],
                "network": job.request["network"],
                "classes": ["cat", "dog"],
                "digest": f"sha256:{model_id.hex}",
                "size_bytes": 2,
                "metrics": {
                    "test_accuracy": {"last": 0.9},
                    "images_per_second": 250.0,
                    "label_version": job.label_version,
                    **metrics,
                },
                "spec": job.spec,
            }
            assert attempt.publish(session, claim.id, claim.fence, metrics=model["metrics"], model=model)
        return model_id

    def fail(self, claim: Any) -> None:
        error = {
            "code": "diverged",
            "title": "It diverged",
            "detail": "The loss became NaN.",
            "hint": "lower it",
        }
        with db.transaction(self.engine) as session:
            assert attempt.fail(session, claim.id, claim.fence, error)

    def models(self) -> int:
        with db.transaction(self.engine) as session:
            return session.query(Model).count()


@pytest.fixture
def fake_worker(engine: Engine, files: Storage) -> FakeWorker:
    return FakeWorker(engine, files)


@pytest.fixture
def submit(client: Client, dataset_id: str) -> Callable[..., Any]:
    def post(**fields: Any) -> Any:
        answer = client.post("/jobs", json={"dataset_id": dataset_id, **fields})
        assert answer.status_code == 202, answer.text
        return answer.json()

    return post


class LiveServer:
    """The application behind a real server, for what a test client in the same thread cannot show."""

    def __init__(self, app: FastAPI) -> None:
        self.port = free_port()
        config: dict[str, Any] = {"log_config": None, "timeout_graceful_shutdown": 1, "ws": "none"}
        http = connection.limited_protocol(app.state.settings)
        self.server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", self.port, http=http, **config))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.thread.start()
        eventually(lambda: self.server.started, what="the server starts")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def live(
    settings: Settings, catalog: Catalog, with_settings: Callable[..., Client]
) -> Iterator[Callable[..., LiveServer]]:
    started: list[LiveServer] = []

    def start(**changed: Any) -> LiveServer:
        server = LiveServer(create_app(Settings(**{**settings.model_dump(), **changed}), catalog))
        server.start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
