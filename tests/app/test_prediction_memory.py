"""The memory of predictions is bounded: bodies hold it from their first byte on, and the slow ones lose it first."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from tests.app.conftest import Client, LiveServer, jpeg
from tests.servers import eventually

ADMIN = "a-bootstrap-key-for-tests"
BODY_BYTES = 100_000
LIMITS = {
    "predict_body_bytes": BODY_BYTES,
    "predict_memory_bytes": 2 * BODY_BYTES,
    "predict_memory_bytes_per_key": 2 * BODY_BYTES,
    "unfinished_frame_bytes": BODY_BYTES,
    "contended_wait_s": 0.3,
}
Hold = Callable[..., socket.socket]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Begins a prediction whose body does not come."""
    with contextlib.ExitStack() as stack:

        def begin(server: LiveServer, key: str = "") -> socket.socket:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/octet-stream\r\n"
            head += f"Authorization: Bearer {key}\r\n" if key else ""
            connection.sendall(f"{head}Content-Length: {BODY_BYTES}\r\n\r\nx".encode())
            return connection

        yield begin


def predict(server: LiveServer, key: str = "") -> Any:
    """The answer to a prediction; a 404 where it could begin, as there is no model."""
    headers = {"Content-Type": "image/jpeg"} | ({"Authorization": f"Bearer {key}"} if key else {})
    return httpx2.post(f"{server.url}/predict", content=jpeg((1, 2, 3)), headers=headers, timeout=30)


def new_key(server: LiveServer, name: str) -> str:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN}"}
    body = json.dumps({"name": name, "scopes": ["predict"]}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/keys", body, headers), timeout=20) as response:
        key: str = json.loads(response.read())["key"]
        return key


def is_refused(answer: Any) -> bool:
    refused: bool = answer.status_code == 429
    if refused:
        assert answer.json()["type"] == "/problems/overloaded"
        assert int(answer.headers["retry-after"]) > 0
    return refused


def test_predictions_wait_for_memory_and_are_refused(live: Callable[..., LiveServer], hold: Hold) -> None:
    server = live(**LIMITS)
    assert predict(server).status_code == 404
    held = [hold(server), hold(server)]
    eventually(lambda: is_refused(predict(server)), what="the memory is taken")
    held[0].close()
    eventually(lambda: predict(server).status_code == 404, what="the memory of a client that is gone")


def test_DEG7_a_key_has_its_share_of_the_memory(live: Callable[..., LiveServer], hold: Hold) -> None:
    server = live(**LIMITS | {"admin_key": ADMIN, "predict_memory_bytes_per_key": BODY_BYTES})
    greedy, other = new_key(server, "greedy"), new_key(server, "other")
    hold(server, greedy)
    eventually(lambda: is_refused(predict(server, greedy)), what="the share of the key is taken")
    assert predict(server, other).status_code == 404


def test_slow_predictions_make_room_for_others(live: Callable[..., LiveServer], hold: Hold) -> None:
    server = live(**LIMITS | {"contended_grace_s": 0.3})
    held = [hold(server), hold(server)]
    for _ in range(5):
        assert predict(server).status_code == 404
    ended, _, _ = select.select(held, [], [], 20)  # either: the service may accept the second connection first
    answers = [connection.recv(65536) for connection in ended]
    assert [answer.startswith(b"HTTP/1.1 408") for answer in answers] == [True], answers
    assert b"/problems/body-too-slow" in answers[0]


def test_stored_images_of_a_request_have_a_size_limit_too(
    with_settings: Callable[..., Client], dataset_id: str, client: Client
) -> None:
    limited = with_settings(**LIMITS | {"predict_body_bytes": 10_000})
    sizes = len(client.get(f"/datasets/{dataset_id}/images/0").content)
    few, many = 10_000 // sizes - 1, 10_000 // sizes + 1
    query = "&".join([f"image=dataset:{dataset_id}/0"] * few)
    assert limited.get(f"/predict?{query}").json()["type"] == "/problems/model-not-found"
    query = "&".join([f"image=dataset:{dataset_id}/0"] * many)
    answer = limited.get(f"/predict?{query}")
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
