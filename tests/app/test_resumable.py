"""Resumable uploads: tus 1.0.0 by HTTP, killed at any byte, and by a client that others wrote."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import http.client
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from app.datasets import uploads
from app.settings import Settings
from app.storage import Storage
from tests.app.conftest import BOTH, Client, LiveServer, ingest_it
from tests.servers import eventually, free_port

TUS = {"Tus-Resumable": "1.0.0"}
CHUNK = TUS | {"Content-Type": "application/offset+octet-stream"}


def begin(client: Client, length: int, **headers: str) -> str:
    answer = client.post("/uploads", headers=TUS | {"Upload-Length": str(length)} | headers)
    assert answer.status_code == 201, answer.text
    location: str = answer.headers["location"]
    return location


def patch(client: Client, place: str, offset: int, data: bytes, **headers: str) -> Any:
    return client.patch(place, content=data, headers=CHUNK | {"Upload-Offset": str(offset)} | headers)


def offset_of(client: Client, place: str) -> int:
    answer = client.head(place, headers=TUS)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    return int(answer.headers["upload-offset"])


def checksum(data: bytes, algorithm: str = "sha256") -> dict[str, str]:
    digest = hashlib.new(algorithm, data).digest()
    return {"Upload-Checksum": f"{algorithm} {base64.b64encode(digest).decode()}"}


def finish(client: Client, place: str, **fields: Any) -> Any:
    return client.post("/datasets", json={"upload_id": place.rpartition("/")[2], **fields})


def left(files: Storage) -> list[str]:
    return sorted(path.name for path in (files.root / "uploads").iterdir())


def test_the_server_says_what_it_supports(client: Client) -> None:
    answer = client.options("/uploads")
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation", "creation-with-upload", "checksum", "expiration", "termination",
    }  # fmt: skip
    assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")
    assert int(answer.headers["tus-max-size"]) > 0


@BOTH
def test_an_archive_in_parts_becomes_a_data_set(client: Client, archive_bytes: bytes, files: Storage) -> None:
    filename = base64.b64encode(b"my pets.zip").decode()
    place = begin(client, len(archive_bytes), **{"Upload-Metadata": f"filename {filename},filetype"})
    middle = len(archive_bytes) // 2
    for start, end in ((0, middle), (middle, len(archive_bytes))):
        answer = patch(client, place, start, archive_bytes[start:end])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(end))
        assert parsedate_to_datetime(answer.headers["upload-expires"]).timestamp() > time.time()
        assert offset_of(client, place) == end
    described = client.get(place)
    assert described.headers["upload-metadata"] == f"filename {filename},filetype"
    assert (described.json()["offset"], described.json()["length"]) == (len(archive_bytes), len(archive_bytes))

    answer = finish(client, place)
    assert answer.status_code == 202, answer.text
    dataset = answer.json()
    assert dataset["name"] == "my pets"
    assert answer.headers["location"] == f"/datasets/{dataset['id']}"
    assert left(files) == [f"{dataset['id']}.archive"]
    assert files.upload(dataset["id"]).read_bytes() == archive_bytes
    ingest_it(client, dataset["id"])
    assert client.get(f"/datasets/{dataset['id']}").json()["status"] == "ready"
    assert client.head(place, headers=TUS).status_code == 404


def test_the_first_bytes_may_come_with_the_beginning(client: Client, archive_bytes: bytes) -> None:
    headers = CHUNK | {"Upload-Length": str(len(archive_bytes))} | checksum(archive_bytes[:100])
    answer = client.post("/uploads", content=archive_bytes[:100], headers=headers)
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "100")
    assert offset_of(client, answer.headers["location"]) == 100


def test_bytes_go_only_where_the_upload_ends(client: Client) -> None:
    place = begin(client, 10)
    assert patch(client, place, 0, b"01234").status_code == 204
    for offset in (0, 4, 6):
        refused = patch(client, place, offset, b"x")
        assert (refused.status_code, refused.headers["upload-offset"]) == (409, "5")
        assert refused.json()["type"] == "/problems/offset-conflict"
        assert refused.headers["tus-resumable"] == "1.0.0"
    assert patch(client, place, 5, b"56789x").status_code == 413
    assert offset_of(client, place) == 5
    assert patch(client, place, 5, b"56789").status_code == 204
    assert patch(client, place, 10, b"").status_code == 204


@pytest.mark.parametrize("algorithm", ["sha256", "sha1"])
def test_a_chunk_that_was_changed_on_its_way_leaves_nothing(client: Client, algorithm: str, files: Storage) -> None:
    place = begin(client, 10)
    assert patch(client, place, 0, b"01234", **checksum(b"01234", algorithm)).status_code == 204
    refused = patch(client, place, 5, b"5678X", **checksum(b"56789", algorithm))
    assert (refused.status_code, refused.json()["type"]) == (460, "/problems/checksum-mismatch")
    assert offset_of(client, place) == 5
    assert patch(client, place, 5, b"56789", **checksum(b"56789", algorithm)).status_code == 204
    assert (files.root / place[1:] / "data").read_bytes() == b"0123456789"
    for wrong in ("md5 AAAA", "sha256 !", "sha256"):
        assert patch(client, place, 10, b"", **{"Upload-Checksum": wrong}).status_code in {400, 460}


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Upload-Length": "5"}, 412),
        ({"Upload-Length": "5", "Tus-Resumable": "0.2.2"}, 412),
        (TUS, 422),
        (TUS | {"Upload-Length": "-1"}, 422),
        (TUS | {"Upload-Length": "5.5"}, 422),
        (TUS | {"Upload-Length": "9" * 30}, 422),
        (TUS | {"Upload-Length": "9" * 17}, 413),
        (TUS | {"Upload-Length": "5", "Upload-Metadata": "a b c"}, 422),
        (TUS | {"Upload-Length": "5", "Upload-Metadata": "k " + "A" * 5000}, 422),
    ],
)
def test_what_cannot_begin_leaves_nothing(client: Client, headers: dict[str, str], status: int, files: Storage) -> None:
    refused = client.post("/uploads", headers=headers)
    assert (refused.status_code, refused.headers["tus-resumable"]) == (status, "1.0.0")
    assert status != 412 or refused.headers["tus-version"] == "1.0.0"
    assert left(files) == []


def test_requests_that_do_not_fit_are_refused(client: Client) -> None:
    place = begin(client, 10)
    kind = client.patch(place, content=b"x", headers=TUS | {"Upload-Offset": "0", "Content-Type": "application/zip"})
    assert kind.status_code == 415
    assert client.patch(place, content=b"x", headers=CHUNK).status_code == 422
    assert client.patch(place, content=b"x", headers={**CHUNK, "Tus-Resumable": "2.0.0"}).status_code == 412
    assert client.head(place).status_code == 412
    assert client.put(place, headers=TUS).status_code == 405
    nobody = "/uploads/00000000-0000-4000-8000-000000000000"
    for answer in (
        client.head(nobody, headers=TUS),
        client.delete(nobody, headers=TUS),
        patch(client, nobody, 0, b"x"),
        finish(client, nobody),
    ):
        assert answer.status_code == 404
    assert client.head("/uploads/../x", headers=TUS).status_code in {404, 405, 422}


def test_an_upload_is_given_up_or_expires(with_settings: Callable[..., Client]) -> None:
    client = with_settings(upload_expires_s=60.0, max_unfinished_uploads=2)
    files: Storage = client.app.state.storage  # type: ignore[attr-defined]
    one, two = begin(client, 10), begin(client, 10)
    refused = client.post("/uploads", headers=TUS | {"Upload-Length": "10"})
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-uploads")
    assert client.delete(one, headers=TUS).status_code == 204
    assert client.head(one, headers=TUS).status_code == 404

    folder = files.root / two[1:]
    for path in folder.iterdir():
        os.utime(path, (time.time() - 61, time.time() - 61))
    begin(client, 10)  # makes room
    assert not folder.exists()
    assert client.head(two, headers=TUS).status_code == 404
    assert len(left(files)) == 1


def test_keys_need_the_scope_of_uploads(with_settings: Callable[..., Client]) -> None:
    admin = {"Authorization": "Bearer an-admin-key-of-some-length"}
    client = with_settings(admin_key="an-admin-key-of-some-length")
    answer = client.post("/uploads", headers=TUS | {"Upload-Length": "5"})
    assert (answer.status_code, answer.headers["tus-resumable"]) == (401, "1.0.0")
    key = client.post("/keys", json={"name": "reader", "scopes": ["read"]}, headers=admin).json()["key"]
    reader = {"Authorization": f"Bearer {key}"}
    assert client.post("/uploads", headers=TUS | {"Upload-Length": "5"} | reader).status_code == 403
    assert client.post("/uploads", headers=TUS | {"Upload-Length": "5"} | admin).status_code == 201
    assert client.options("/uploads").status_code == 204


def test_an_unfinished_or_rejected_upload_stays(client: Client, archive_bytes: bytes, files: Storage) -> None:
    place = begin(client, len(archive_bytes))
    patch(client, place, 0, archive_bytes[:-1])
    refused = finish(client, place, name="pets")
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/upload-incomplete")
    patch(client, place, len(archive_bytes) - 1, archive_bytes[-1:])
    assert finish(client, place, name="pets", colour="red").status_code == 422
    assert finish(client, place, name="pets").status_code == 202

    broken = begin(client, 100)
    patch(client, broken, 0, b"PK" + bytes(98))
    refused = finish(client, broken)
    assert (refused.status_code, refused.json()["type"]) == (422, "/problems/bad-archive")
    assert offset_of(client, broken) == 100
    assert sum(name.endswith(".archive") for name in left(files)) == 1


def test_a_finished_upload_has_every_field_of_the_other_forms() -> None:
    assert set(uploads.FinishedUpload.model_fields) == {"upload_id", *uploads.FIELDS}


@BOTH
def test_a_repeated_finish_is_replayed(client: Client, archive_bytes: bytes) -> None:
    place = begin(client, len(archive_bytes))
    patch(client, place, 0, archive_bytes)
    body, key = {"upload_id": place.rpartition("/")[2], "name": "pets"}, {"Idempotency-Key": "k1"}
    first, second = (client.post("/datasets", json=body, headers=key) for _ in range(2))
    assert (first.status_code, second.status_code, second.json()) == (202, 202, first.json())
    assert second.headers["idempotency-replayed"] == "true"
    assert client.post("/datasets", json=body | {"name": "other"}, headers=key).status_code == 422


def test_a_full_disk_is_said_before_bytes_arrive(with_settings: Callable[..., Client]) -> None:
    client = with_settings(min_free_bytes=2**60)
    assert client.post("/uploads", headers=TUS | {"Upload-Length": "5"}).status_code == 507


# --- a real server ---


def exchange(port: int, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> http.client.HTTPResponse:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.read()
        return response


def begin_live(port: int, length: int) -> str:
    response = exchange(port, "POST", "/uploads", TUS | {"Upload-Length": str(length)})
    assert response.status == 201
    return str(response.headers["location"])


def live_offset(port: int, place: str) -> int:
    return int(exchange(port, "HEAD", place, TUS).headers["upload-offset"])


def half_sent(
    port: int, place: str, offset: int, length: int, data: bytes, **headers: str
) -> http.client.HTTPConnection:
    """A PATCH that announced `length` bytes, of which `data` were sent."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("PATCH", place)
    for name, value in (CHUNK | {"Upload-Offset": str(offset), "Content-Length": str(length)} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(data)
    return connection


def test_two_requests_do_not_write_at_once(live: Callable[..., LiveServer], settings: Settings) -> None:
    port = live().port
    place = begin_live(port, 10)
    writing = half_sent(port, place, 0, 10, b"01234")
    data = settings.data_dir / place[1:] / "data"

    def is_locked() -> bool:
        return exchange(port, "DELETE", place, TUS | {"Content-Length": "0"}).status == 423

    # the server has the request as soon as it answers others with 423; nothing of the upload was deleted before
    eventually(lambda: exchange(port, "PATCH", place, CHUNK | {"Upload-Offset": "9"}).status == 423, what="the lock")
    assert is_locked()
    body = b'{"upload_id": "%s"}' % place.rpartition("/")[2].encode()
    assert exchange(port, "POST", "/datasets", {"Content-Type": "application/json"}, body).status == 423
    writing.send(b"56789")
    assert writing.getresponse().status == 204
    writing.close()
    assert data.read_bytes() == b"0123456789"


def test_what_arrived_before_the_connection_broke_stays(live: Callable[..., LiveServer], settings: Settings) -> None:
    port = live().port
    place = begin_live(port, 2**20)
    sent = random.Random(1).randbytes(300_000)
    half_sent(port, place, 0, 2**20, sent).close()
    eventually(lambda: live_offset(port, place) == len(sent), what="the bytes are recorded")
    eventually(
        lambda: exchange(port, "PATCH", place, CHUNK | {"Upload-Offset": "1"}).status == 409, what="the lock ends"
    )
    rest = sent + bytes(2**20 - len(sent))
    after = exchange(port, "PATCH", place, CHUNK | {"Upload-Offset": str(len(sent))}, rest[len(sent) :])
    assert after.status == 204
    assert (settings.data_dir / place[1:] / "data").read_bytes() == rest


class KilledServer:
    """The API as a process of its own, which is killed and started again."""

    def __init__(self, settings: Settings) -> None:
        self.port = free_port()
        self._environment = {
            **os.environ,
            "DENLL_DATA_DIR": str(settings.data_dir),
            "DENLL_DATABASE_URL": settings.database_url,
            "DENLL_PORT": str(self.port),
            "DENLL_MIN_FREE_BYTES": "0",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.main"], env=self._environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def answers() -> bool:
            try:
                return exchange(self.port, "OPTIONS", "/uploads", {}).status == 204
            except OSError:
                return False

        eventually(answers, what="the server answers", seconds=60)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None


@pytest.fixture
def killed_server(settings: Settings) -> Iterator[KilledServer]:
    server = KilledServer(settings)
    server.start()
    yield server
    server.kill()


def is_longer(file: Path, size: int) -> bool:
    return file.stat().st_size > size


@pytest.mark.slow
def test_a_server_that_is_killed_at_any_byte_goes_on_from_there(
    killed_server: KilledServer, settings: Settings
) -> None:
    draw = random.Random(7)
    archive = draw.randbytes(16_000_000)
    place = begin_live(killed_server.port, len(archive))
    data = settings.data_dir / place[1:] / "data"
    for round_ in range(4):
        offset = live_offset(killed_server.port, place)
        assert data.read_bytes()[:offset] == archive[:offset]
        end = offset + draw.randrange(1_100_000, 4_000_000)  # the server writes a megabyte at a time
        header = checksum(archive[offset:]) if round_ % 2 else {}
        writing = half_sent(killed_server.port, place, offset, len(archive) - offset, archive[offset:end], **header)
        eventually(functools.partial(is_longer, data, offset), what="it writes")
        killed_server.kill()
        writing.close()
        killed_server.start()
        after = live_offset(killed_server.port, place)
        assert offset <= after <= end
        if round_ % 2:
            assert after == offset  # nobody compared the checksum of what arrived
    offset = live_offset(killed_server.port, place)
    last = exchange(killed_server.port, "PATCH", place, CHUNK | {"Upload-Offset": str(offset)}, archive[offset:])
    assert last.status == 204
    assert data.read_bytes() == archive


@pytest.mark.slow
def test_tuspy_uploads_through_a_server_that_is_killed(
    killed_server: KilledServer, settings: Settings, archive_bytes: bytes
) -> None:
    tusclient = pytest.importorskip("tusclient.client")
    client = tusclient.TusClient(f"http://127.0.0.1:{killed_server.port}/uploads")
    archive = archive_bytes + bytes(200_000)  # a comment's worth of bytes behind it, so that it takes several chunks
    uploader = client.uploader(
        file_stream=io.BytesIO(archive), chunk_size=30_000, retries=60, retry_delay=1, upload_checksum=True,
        metadata={"filename": "pets.zip"},
    )  # fmt: skip
    for _ in range(3):
        uploader.upload_chunk()
    killed_server.kill()
    restart = threading.Thread(target=killed_server.start)
    restart.start()
    uploader.upload()
    restart.join()
    assert uploader.offset == len(archive)
    place = "/uploads/" + uploader.url.rpartition("/")[2]
    assert live_offset(killed_server.port, place) == len(archive)
    assert (settings.data_dir / place[1:] / "data").read_bytes() == archive
