"""The security middleware: hosts, origins, body limits, request ids, HEAD, and one shape of every refusal."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.http import security
from tests.app.conftest import Client, LiveServer


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


@pytest.mark.parametrize("origins", [["http://["], ["http://[x"], ["http://127.0.0.1:8000", "https://evil.example"]])
def test_H5_an_origin_that_is_none_and_a_second_one_are_refused(client: Client, origins: list[str]) -> None:
    answer = client.post("/jobs", json={}, headers=[("Origin", origin) for origin in origins])
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/cross-site")


def test_H5_our_own_page_may_change_things(client: Client) -> None:
    assert client.post("/jobs", json={}, headers={"Origin": "http://127.0.0.1:8000"}).status_code == 422


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "text/plain; charset=utf-8"])
def test_H5_what_a_form_can_send_is_a_415(client: Client, kind: str) -> None:
    refused = client.post("/jobs", content=b"{}", headers={"Content-Type": kind})
    assert refused.status_code == 415
    assert "Content-Type: application/json" in refused.json()["detail"]  # `curl -d` alone sends a form
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
    for path in (
        "/nowhere",
        "/static/../settings.py",
        "/static/%2e%2e/main.py",
        "/static/nothing.js",
        "/v2/health",
        "/jobs/",
    ):
        answer = client.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_a_bug_is_a_500_problem_that_tells_nothing_but_the_request(client: Client) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    client.app.state.storage.free_bytes = broken  # type: ignore[attr-defined]
    answer = client.get("/metrics")
    assert answer.status_code == 500
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("origin", "same"),
    [("http://h:1", True), ("http://h:2", False), ("null", False), ("http://h:1.evil", False), ("http://[", False)],
)
def test_same_origin_compares_host_and_port(origin: str, same: bool) -> None:
    assert security.same_origin(origin, "h:1") == same


@pytest.mark.alone
def test_H3_a_body_that_trickles_is_given_up(live: Callable[..., LiveServer]) -> None:
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


def all_of(connection: socket.socket) -> bytes:
    """Everything until the server closes; what it sent before a reset counts."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"GE",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /livez HT",
    ],
)
@pytest.mark.alone
def test_H3_a_connection_that_trickles_outside_of_a_body_is_closed(
    live: Callable[..., LiveServer], start: bytes
) -> None:
    server = live(slow_header_s=0.5)
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as slow:
        slow.sendall(start)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 10:
                with contextlib.suppress(TimeoutError):
                    if not slow.recv(65536):
                        break
                slow.sendall(b"a")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("before", [b"", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_H1_endless_headers_are_a_431_problem(live: Callable[..., LiveServer], before: bytes) -> None:
    server = live(header_bytes=4096)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as endless:
        endless.sendall(before + b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                endless.sendall(b"a" * 65536)
        answer = all_of(endless)
    assert b"HTTP/1.1 431 " in answer
    assert b"/problems/header-too-large" in answer


def test_what_is_no_http_is_a_400_problem(live: Callable[..., LiveServer]) -> None:
    server = live()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as other:
        other.sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        head, _, body = all_of(other).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["type"] == "/problems/malformed"


def test_an_upgrade_is_answered_as_a_request(live: Callable[..., LiveServer]) -> None:
    server = live()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as other:
        other.sendall(
            b"GET /jobs/x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        answer = all_of(other)
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"application/problem+json" in answer


def test_websockets_are_not_served(client: Client) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/jobs"):
        pass


def test_every_answer_carries_the_safety_headers(client: Client) -> None:
    headers: Any = client.get("/").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
