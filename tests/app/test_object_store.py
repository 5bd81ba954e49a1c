"""What is published exists if and only if its manifest does; copies are verified, shared and limited in size."""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.errors import InsufficientStorage, StorageUnavailable
from app.object_cache import IDLE_S, KEY, ObjectCache
from app.object_store import Manifest, ObjectStore
from app.settings import Settings, without_secrets
from app.shared_storage import CACHE, MixedStorage, SharedStorage
from app.storage import Storage
from ml.formats import weights_folder
from ml.formats.weights_folder import WeightsRecord
from tests import servers
from tests.app.conftest import Client, class_folders, upload
from tests.faults.proxy import Proxy
from tests.servers import LOOPBACK, S3Server, eventually, free_port

SKIPPED = servers.missing_for_s3()
pytestmark = pytest.mark.skipif(SKIPPED is not None, reason=SKIPPED or "")
FILE = b"some bytes " * 1000


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with servers.s3_server() as server:
        yield server


@pytest.fixture
def remote(s3: S3Server) -> dict[str, Any]:
    """Settings of a store that is empty."""
    return s3.settings


@pytest.fixture
def store(remote: dict[str, Any], tmp_path: Path) -> ObjectStore:
    return ObjectStore(Settings(data_dir=tmp_path, **remote))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Something to publish."""
    folder = tmp_path / "made"
    (folder / "inner").mkdir(parents=True)
    (folder / "one").write_bytes(FILE)
    (folder / "inner" / "two").write_bytes(FILE[::-1])
    return folder


def cache_of(store: ObjectStore, folder: Path, limit: int = 1 << 30) -> ObjectCache:
    folder.mkdir(exist_ok=True)
    return ObjectCache(store, folder, limit)


def published(store: ObjectStore, key: str, source: Path) -> Manifest:
    manifest = store.upload(key, source)
    store.publish(manifest)
    return manifest


def test_what_is_uploaded_is_not_there_until_it_is_published(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    manifest = store.upload("models/a", folder)
    assert (store.read("models/a"), store.keys("models")) == (None, {})

    store.publish(manifest)

    assert store.read("models/a") == manifest
    assert store.keys("models").keys() == {"models/a"}
    entry = cache_of(store, tmp_path / CACHE).fetch(manifest)
    assert {path.relative_to(entry).as_posix(): path.read_bytes() for path in entry.rglob("*") if path.is_file()} == {
        "one": FILE,
        "inner/two": FILE[::-1],
    }
    assert store.read_range(manifest, "one", 5, 11) == FILE[5:16]


def test_a_publication_is_replaced_whole(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    before = published(store, "jobs/a/artifacts", folder)
    (folder / "one").write_bytes(b"new")
    after = published(store, "jobs/a/artifacts", folder)

    assert store.read("jobs/a/artifacts") == after
    with pytest.raises(FileNotFoundError):
        store.download(before, "one", tmp_path / "copy")
    store.download(after, "one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"new"


def test_deleting_takes_what_lies_below_and_nothing_beside(store: ObjectStore, folder: Path) -> None:
    for key in ("datasets/a", "datasets/a/labels/2.sqlite", "datasets/ab"):
        published(store, key, folder / "one")

    assert store.delete("datasets/a") == 2 * len(FILE)
    assert store.delete("datasets/a") == 0

    assert store.keys("").keys() == {"datasets/ab"}


def test_only_what_nobody_needs_and_is_old_is_collected(store: ObjectStore, folder: Path) -> None:
    """Half an upload, of which there will never be a manifest, is known by its age alone."""
    needed = published(store, "models/needed", folder)
    published(store, "models/orphan", folder)
    store.upload("models/half", folder)
    store.upload("models/needed", folder)

    assert store.collect(lambda key: key == "models/needed", 3600.0) == (0, 0)
    assert store.collect(lambda key: key == "models/needed", -60.0) == (1, 4)

    assert store.keys("").keys() == {"models/needed"}
    assert store.read_range(needed, "one", 0, len(FILE)) == FILE


def test_a_damaged_object_is_never_read(
    store: ObjectStore, remote: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    published(store, "models/a", folder)
    other = published(store, "models/b", folder)
    manifest = Manifest("models/a", store.read("models/a").id, {"one": other.files["inner/two"]})  # type: ignore[union-attr]

    cache = cache_of(store, tmp_path / CACHE)
    with pytest.raises(StorageUnavailable, match="damaged"):
        cache.fetch(manifest)

    assert not [path for path in cache.folder.rglob("*") if path.is_file() and path.suffix != KEY]


# --- The cache


def used_ago(cache: ObjectCache, manifest: Manifest, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(cache.folder / f"{manifest.id}{KEY}", (then, then))


def test_the_least_recently_used_goes_first_and_what_is_in_use_stays(
    store: ObjectStore, folder: Path, tmp_path: Path
) -> None:
    manifests = [published(store, f"datasets/{n}", folder) for n in range(4)]
    size = manifests[0].size
    cache = cache_of(store, tmp_path / CACHE, limit=3 * size)
    holder = cache_of(store, tmp_path / CACHE, limit=3 * size)  # another process
    holder.fetch(manifests[0], hold=True)
    for age, manifest in zip((400, 300, 200), manifests[:3], strict=True):
        cache.fetch(manifest)
        used_ago(cache, manifest, age)

    cache.fetch(manifests[3])

    assert {path.stem for path in cache.folder.glob(f"*{KEY}")} == {manifests[n].id for n in (0, 2, 3)}
    assert sum(path.stat().st_size for path in cache.folder.glob("*/**/*") if path.is_file()) == 3 * size


def test_what_was_used_a_moment_ago_stays(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    one, two = (published(store, f"datasets/{n}", folder) for n in range(2))
    cache = cache_of(store, tmp_path / CACHE, limit=one.size)
    cache.fetch(one)
    cache.fetch(two)
    assert len(list(cache.folder.glob(f"*{KEY}"))) == 2

    used_ago(cache, one, 2 * IDLE_S)
    cache.make_room(0)
    assert [path.stem for path in cache.folder.glob(f"*{KEY}")] == [two.id]


def test_a_file_is_downloaded_by_one_process_at_a_time(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    manifest = published(store, "models/a", folder / "one")
    cache = cache_of(store, tmp_path / CACHE)
    entry = cache.folder / manifest.id
    entry.mkdir()
    descriptor = os.open(entry, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # another process downloads it
    waiting, contents = threading.Event(), list[bytes]()

    def fetch() -> None:
        contents.append((cache.fetch(manifest, progress=lambda done, total: waiting.set()) / "a").read_bytes())

    thread = threading.Thread(target=fetch)
    thread.start()
    assert waiting.wait(20.0)
    store.delete("models/a")  # a second download would find nothing
    (entry / "a").write_bytes(FILE)
    os.close(descriptor)
    thread.join(20.0)
    assert contents == [FILE]


def test_copies_of_what_is_gone_are_swept(store: ObjectStore, folder: Path, tmp_path: Path) -> None:
    gone, there = (published(store, f"models/{n}", folder) for n in range(2))
    cache = cache_of(store, tmp_path / CACHE)
    for manifest in (gone, there):
        cache.fetch(manifest)
        used_ago(cache, manifest, 2 * IDLE_S)
    store.delete("models/0")

    assert cache.sweep() == 1
    assert [path.stem for path in cache.folder.glob(f"*{KEY}")] == [there.id]


# --- The storage


def test_a_file_that_was_replaced_is_read_anew(remote: dict[str, Any], tmp_path: Path) -> None:
    one, two = (SharedStorage(Settings(data_dir=tmp_path / name, **remote)) for name in ("one", "two"))
    for files in (one, two):
        files.create()
    path = one.attempt(uuid.UUID(int=1), 1) / "log.jsonl"
    path.parent.mkdir(parents=True)
    for text in ("first", "first and second"):
        path.write_text(text)
        one.publish_copy(path, path)
        assert [file.read_text() for file in two.log_files(uuid.UUID(int=1)).values()] == [text]


def test_an_installation_without_an_object_store_is_not_taken_over(remote: dict[str, Any], tmp_path: Path) -> None:
    local = Storage(tmp_path)
    local.create()
    local.model(uuid.uuid4()).mkdir()

    with pytest.raises(MixedStorage, match="back the service up"):
        SharedStorage(Settings(data_dir=tmp_path, **remote)).create()


def test_abandoned_work_is_swept_and_nothing_else(remote: dict[str, Any], tmp_path: Path) -> None:
    files = SharedStorage(Settings(data_dir=tmp_path, **remote))
    files.create()
    old, young = files.attempt(uuid.UUID(int=1), 1), files.attempt(uuid.UUID(int=2), 1)
    for attempt, age in ((old, 1000.0), (young, 0.0)):
        attempt.mkdir(parents=True)
        (attempt / "log.jsonl").touch()
        for path in (attempt / "log.jsonl", attempt, attempt.parent):
            os.utime(path, (time.time() - age,) * 2)

    files.sweep(500.0, 500.0)

    assert (old.exists(), young.exists()) == (False, True)


def test_weights_of_one_host_are_installed_on_the_others_and_replaced_there(
    remote: dict[str, Any], tmp_path: Path
) -> None:
    one, two = (SharedStorage(Settings(data_dir=tmp_path / name, **remote)) for name in ("one", "two"))
    for files in (one, two):
        files.create()
    for content in (b"weights", b"other weights"):
        file = one.new_weights()
        file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        record = WeightsRecord(
            "small", "small", "test", "none", (0.5,) * 3, (0.5,) * 3, 32, "squash", 1, digest, len(content)
        )
        one.install_weights(file, record)

        assert two.installed_weights() == [record]
        folder = two.fetch_weights("small")
        assert weights_folder.read_record(folder, "small") == record
        assert weights_folder.weights_path(folder, "small").read_bytes() == content

    assert two.remove_weights("small")
    assert (one.installed_weights(), one.weights_record("small")) == ([], None)


# --- Faults


def test_F32_a_store_that_refuses_or_hangs_is_a_problem_and_no_secret_is_told(
    s3: S3Server, remote: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = Proxy(LOOPBACK, s3.port)
    hanging = ObjectStore(
        Settings(data_dir=tmp_path, **remote | {"object_store_endpoint": f"http://{LOOPBACK}:{proxy.port}"})
    )
    assert hanging.fault() is None
    refused = f"http://{LOOPBACK}:{free_port()}"
    problems = []
    for broken in (
        ObjectStore(Settings(data_dir=tmp_path, **remote | {"object_store_endpoint": refused})),
        ObjectStore(Settings(data_dir=tmp_path, **remote | {"object_store": "s3://no-such-bucket/x"})),
    ):
        with pytest.raises(StorageUnavailable) as problem:
            broken.read("models/a")
        problems.append(problem.value)
        assert broken.fault() == problem.value.detail
    with proxy.hanging(), pytest.raises(StorageUnavailable) as problem:
        hanging.read("models/a", timeout_s=0.5)
    problems.append(problem.value)
    proxy.close()

    assert all(problem.headers["Retry-After"] for problem in problems)
    messages = caplog.text + "".join(f"{p.detail}{p.members}" for p in problems) + repr(Settings(**remote))
    assert s3.secret not in messages


def test_a_store_without_space_is_told_from_one_that_is_away(folder: Path, tmp_path: Path) -> None:
    """As MinIO answers when its disks are full."""

    class Full(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b"<Error><Code>XMinioStorageFull</Code><Message>full</Message></Error>"
            self.send_response(507)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Full)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://{LOOPBACK}:{server.server_address[1]}"
        settings = Settings(
            data_dir=tmp_path, object_store="s3://bucket", object_store_endpoint=endpoint, object_store_region="x",
            object_store_key="key", object_store_secret="secret",
        )  # fmt: skip
        with pytest.raises(InsufficientStorage):
            ObjectStore(settings).upload("models/a", folder)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_F32_an_upload_that_cannot_be_published_leaves_nothing(
    with_settings: Callable[..., Client], s3: S3Server, remote: dict[str, Any], settings: Settings
) -> None:
    proxy = Proxy(LOOPBACK, s3.port)
    client = with_settings(**{**remote, "object_store_endpoint": f"http://{LOOPBACK}:{proxy.port}"})
    assert client.get("/readyz").json()["checks"]["storage"] == {"status": "ok"}
    proxy.close()

    answer = upload(client, class_folders())

    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/storage-unavailable"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/datasets").json()["items"] == []
    assert list((settings.data_dir / "uploads").iterdir()) == []
    checks = eventually(lambda: (c := client.get("/readyz").json()["checks"])["storage"]["status"] != "ok" and c)
    assert checks
    assert checks["storage"]["status"] == "degraded"
    assert s3.secret not in str(checks)


# --- Settings


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"object_store": "bucket"}, "s3://BUCKET"),
        ({"object_store": "gs://bucket"}, "s3://BUCKET"),
        ({"object_store": "s3://key:secret@bucket"}, "s3://BUCKET"),
        ({"object_store_secret": ""}, "set together"),
        ({"object_store_key": ""}, "set together"),
        ({"object_store_endpoint": "minio:9000"}, "http"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_start(
    remote: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    assert Settings(**remote).object_store
    with pytest.raises(ValidationError, match=message):
        Settings(**{**remote, **changed})


def test_SEC9_the_secret_reaches_only_who_reads_and_publishes_files(remote: dict[str, Any]) -> None:
    environment = {f"DENLL_{name.upper()}": value for name, value in remote.items()}
    assert without_secrets(environment, "object_store_secret") == environment
    assert without_secrets(environment, "database_url").keys() == {
        "DENLL_OBJECT_STORE_ENDPOINT",
        "DENLL_OBJECT_STORE_REGION",
    }
