"""The door: hosts, origins, body limits, request ids, HEAD, and one shape for every refusal."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.http import guard
from tests.app.conftest import Client, Live


def test_H4_a_foreign_host_name_is_refused_and_ours_are_not(
    client: Client, with_settings: Callable[..., Client]
) -> None:
    refused = client.get("/livez", headers={"Host": "evil.example"})
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/host-not-allowed")
    for host in ("127.0.0.1:8000", "localhost", "[::1]:8000", "10.0.0.7:8000"):
        assert client.get("/livez", headers={"Host": host}).status_code == 200
    named = with_settings(allowed_hosts="api.example, other.example")
    assert named.get("/livez", headers={"Host": "API.example:443"}).status_code == 200


@pytest.mark.parametrize("host", ["", "a b", "x\x00y", "evil@127.0.0.1", "127.0.0.1:99999999"])
def test_H4_a_malformed_host_is_a_400(client: Client, host: str) -> None:
    assert client.get("/livez", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}],
)
def test_H5_a_cross_site_request_cannot_change_anything(client: Client, headers: dict[str, str]) -> None:
    answer = client.post("/jobs", json={}, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/cross-site")
    assert client.get("/livez", headers=headers).status_code == 200


def test_H5_our_own_page_may_change_things(client: Client) -> None:
    assert client.post("/jobs", json={}, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 422


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/plain; charset=utf-8"])
def test_H5_what_a_form_can_send_is_a_415(client: Client, kind: str) -> None:
    assert client.post("/jobs", content=b"{}", headers={"Content-Type": kind}).status_code == 415
    assert client.post("/datasets", content=b"a=1", headers={"Content-Type": kind}).status_code == 415


def test_H1_compressed_bodies_are_a_415(client: Client) -> None:
    assert client.post("/jobs", json={}, headers={"Content-Encoding": "gzip"}).status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_H1_a_json_body_over_the_limit_is_a_413_problem(client: Client, chunked: bool) -> None:
    body = b'{"name": "' + b"x" * (1 << 20) + b'"}'
    content = (body[n : n + 65536] for n in range(0, len(body), 65536)) if chunked else body
    answer = client.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


def test_request_ids_are_echoed_or_made_but_never_taken_on_trust(client: Client) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for strange in ("a" * 500, "a b", 'x"y'):
        made = client.get("/nowhere", headers={"X-Request-Id": strange})
        assert made.headers["x-request-id"] != strange
        assert made.json()["request_id"] == made.headers["x-request-id"]


def test_head_answers_wherever_get_does_without_a_body(client: Client) -> None:
    for path in ("/livez", "/jobs", "/datasets", "/methods", "/openapi.json", "/docs"):
        got, headed = client.get(path), client.head(path)
        assert (headed.status_code, headed.content) == (200, b"")
        assert headed.headers["content-type"] == got.headers["content-type"]
    assert client.head("/nowhere").status_code == 404


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/jobs", "GET, HEAD, POST"),
        ("/livez", "GET, HEAD"),
        ("/keys", "GET, HEAD, POST"),
        ("/predict", "GET, HEAD, POST"),
    ],
)
def test_H6_an_unknown_method_is_a_405_that_names_all_others(client: Client, path: str, allow: str) -> None:
    answer = client.delete(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)


def test_nothing_at_a_path_is_a_404_problem(client: Client) -> None:
    for path in ("/nowhere", "/static/../settings.py", "/static/%2e%2e/main.py", "/static/nothing.js", "/v2/health"):
        assert client.get(path).status_code == 404


def test_a_bug_is_a_500_problem_that_tells_nothing_but_the_request(client: Client) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    client.app.state.storage.free_bytes = broken  # type: ignore[attr-defined]
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("origin", "same"),
    [(None, True), ("http://h:1", True), ("http://h:2", False), ("null", False), ("http://h:1.evil", False)],
)
def test_same_origin_compares_host_and_port(origin: str | None, same: bool) -> None:
    assert guard.same_origin(origin, "h:1") == same


def test_H3_a_body_that_trickles_is_given_up(live: Callable[..., Live]) -> None:
    server = live(slow_body_s=0.3, slow_body_bytes=1000)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
        )
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408"), answer
    assert b"application/problem+json" in answer
    assert time.monotonic() - started < 5


def test_websockets_are_not_served(client: Client) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/jobs"):
        pass


def test_every_answer_carries_the_safety_headers(client: Client) -> None:
    headers: Any = client.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
