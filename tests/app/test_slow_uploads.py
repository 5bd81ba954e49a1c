"""Places for uploads are for those who use them: over real sockets, a slow upload makes room for one that waits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.app.conftest import Client, LiveServer
from tests.servers import eventually

CONTENDED = {"max_uploads": 2, "contended_grace_s": 0.3, "contended_bytes_per_s": 4096, "contended_wait_s": 1.0}
ZIP = {"Content-Type": "application/zip"}
TUS = {"Tus-Resumable": "1.0.0"}
PERIOD_S = 0.01


class SlowUpload:
    """An upload that sends `step` bytes a hundred times a second until it is answered."""

    def __init__(self, server: LiveServer, head: str, step: int) -> None:
        self.answer = b""
        self.ended = threading.Event()
        self._step = step
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=PERIOD_S)
        self._socket.sendall(f"{head}Host: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\n".encode())
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def _send(self) -> None:
        with contextlib.suppress(ConnectionError):
            while not self.ended.is_set() and not self.answer:
                self._socket.sendall(b"x" * self._step)
                with contextlib.suppress(TimeoutError):  # which paces it
                    self.answer += self._socket.recv(65536)

    @property
    def problem(self) -> Any:
        return json.loads(self.answer.partition(b"\r\n\r\n")[2])

    def close(self) -> None:
        self.ended.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def slowly() -> Iterator[Callable[..., SlowUpload]]:
    started: list[SlowUpload] = []

    def start(server: LiveServer, head: str = "POST /datasets HTTP/1.1\r\nContent-Type: application/zip\r\n") -> Any:
        started.append(SlowUpload(server, head, step=14 if started else 7))  # 1.4 KB a second, and half of that
        return started[-1]

    yield start
    for upload in started:
        upload.close()


def parts(client: Client) -> int:
    folder = client.app.state.storage.root / "uploads"  # type: ignore[attr-defined]
    return sum(path.name.endswith(".part") for path in folder.iterdir())


def test_DEG7_the_slowest_upload_makes_room_for_one_that_waits(
    live: Callable[..., LiveServer], client: Client, archive_bytes: bytes, slowly: Callable[..., SlowUpload]
) -> None:
    server = live(**CONTENDED)
    slowest, slow = slowly(server), slowly(server)
    eventually(lambda: parts(client) == 2, what="both places are taken")
    honest = httpx2.post(f"{server.url}/datasets", content=archive_bytes, headers=ZIP, timeout=30)
    assert honest.status_code == 202, honest.text

    eventually(lambda: slowest.answer, what="an answer to the slowest")
    assert slowest.answer.startswith(b"HTTP/1.1 408"), slowest.answer
    assert b"retry-after:" in slowest.answer.lower()
    assert slowest.problem["type"] == "/problems/body-too-slow"
    assert not slow.answer
    eventually(lambda: parts(client) == 1, what="nothing is left of it")


def test_uploads_that_are_fast_enough_keep_their_places(
    live: Callable[..., LiveServer], client: Client, archive_bytes: bytes, slowly: Callable[..., SlowUpload]
) -> None:
    server = live(**CONTENDED | {"contended_bytes_per_s": 100})
    uploads = [slowly(server), slowly(server)]
    eventually(lambda: parts(client) == 2, what="both places are taken")
    refused = httpx2.post(f"{server.url}/datasets", content=archive_bytes, headers=ZIP, timeout=30)
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/too-many-uploads")
    assert not any(upload.answer for upload in uploads)


def test_a_slow_part_of_a_resumable_upload_makes_room_and_keeps_its_bytes(
    live: Callable[..., LiveServer], archive_bytes: bytes, slowly: Callable[..., SlowUpload]
) -> None:
    server = live(**CONTENDED | {"max_uploads": 1})
    created = httpx2.post(f"{server.url}/uploads", headers=TUS | {"Upload-Length": "1000000"})
    path = created.headers["location"]
    # An unfinished upload to which nobody sends holds no place.
    assert httpx2.post(f"{server.url}/datasets", content=archive_bytes, headers=ZIP, timeout=30).status_code == 202

    head = f"PATCH {path} HTTP/1.1\r\nContent-Type: application/offset+octet-stream\r\nTus-Resumable: 1.0.0\r\n"
    upload = slowly(server, f"{head}Upload-Offset: 0\r\n")

    def honest_upload_displaces_it() -> bytes:
        honest = httpx2.post(f"{server.url}/datasets", content=archive_bytes, headers=ZIP, timeout=30)
        assert honest.status_code == 202, honest.text
        return upload.answer

    eventually(honest_upload_displaces_it, what="an answer to the slow part")
    assert upload.answer.startswith(b"HTTP/1.1 408"), upload.answer
    assert int(httpx2.head(f"{server.url}{path}", headers=TUS).headers["upload-offset"]) > 0
