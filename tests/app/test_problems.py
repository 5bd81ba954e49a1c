"""Hostile bodies: each is a 4xx problem that names what is wrong, and none becomes a 500 (J1-J6)."""

from __future__ import annotations

import json
import time

import pytest

from app.errors import type_of
from app.http import pages
from app.web import problem_pages
from ml.formats.errors import printable
from tests.app.conftest import Client

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"NaN", 422),
        (b'{"epochs": NaN}', 422),
        (b'{"epochs": -Infinity}', 422),
        (b"\xff\xfe\x00", 400),
        ('{"a": 1}'.encode("utf-16"), 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 60 + b"1" + b"}" * 60, 422),
        (b'{"epochs": ' + b"9" * 5000 + b"}", 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b'{"epochs": 1e999}', 422),
        (b'{"name": "\\ud800"}', 422),
        (b'{"\\ud800": 1}', 422),
        (b'{"name": "a\\u0000b"}', 422),
        (b'{"dataset_id": "x", "dataset_id": "y"}', 422),
    ],
)
def test_J3_bodies_that_are_no_request_are_refused(client: Client, body: bytes, status: int) -> None:
    assert client.post("/jobs", content=body, headers=JSON).status_code == status
    assert client.post("/keys", content=body, headers=JSON).status_code == status


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png", "application/zip", ""])
def test_J3_binary_bodies_of_another_type_are_refused(client: Client, kind: str) -> None:
    answer = client.post("/jobs", content=bytes(range(256)), headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 415


@pytest.mark.parametrize("value", [True, "3", 3.5, 2**70, -1, 0, None, [], {}])
def test_J2_an_integer_field_takes_integers_only(client: Client, value: object) -> None:
    answer = client.post("/jobs", json={"dataset_id": "0" * 32, "epochs": value})
    assert answer.status_code == 422
    assert "/epochs" in [fault["pointer"] for fault in answer.json()["errors"]]


def test_J1_unknown_fields_are_named_with_the_likely_one(client: Client) -> None:
    answer = client.post("/jobs", json={"dataset_id": "0" * 32, "epoch": 3, "noise": {"kind": "symmetric", "rat": 1}})
    faults = {fault["pointer"]: fault["detail"] for fault in answer.json()["errors"]}
    assert "'epochs'" in faults["/epoch"]
    assert "'rate'" in faults["/noise/rat"]


@pytest.mark.parametrize("path", ["/jobs", "/keys", "/jobs/00000000-0000-4000-8000-000000000000/retry"])
def test_PRED5_refusing_thousands_of_unknown_fields_takes_no_seconds(client: Client, path: str) -> None:
    started = time.process_time()
    answer = client.post(path, json={f"learning_rat{n}": n for n in range(900)})
    assert (answer.status_code, answer.json()["total_errors"] >= 900) == (422, True)
    assert len(answer.json()["errors"]) == 100
    many = client.post(path, json={f"learning_rat{n}": n for n in range(20_000)})
    assert (many.status_code, [fault["code"] for fault in many.json()["errors"]]) == (422, ["too_many_fields"])
    assert time.process_time() - started < 2


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_J2_a_number_that_is_none_is_named_by_its_place(client: Client, number: str) -> None:
    body = f'{{"noise": {{"kind": "transition", "matrix": [[1, 0], [{number}, 1]]}}}}'
    answer = client.post("/jobs", content=body, headers=JSON)
    fault = answer.json()["errors"][0]
    assert (answer.status_code, fault["pointer"], fault["code"]) == (422, "/noise/matrix/1/0", "finite_number")


def test_PRED5_refusing_thousands_of_query_parameters_takes_no_second(client: Client) -> None:
    started = time.process_time()
    answer = client.get("/jobs?" + "&".join(f"limi{n}=1" for n in range(6000)))
    assert (answer.status_code, answer.json()["total_errors"]) == (422, 6000)
    assert time.process_time() - started < 2


def test_unknown_query_parameters_are_named(client: Client) -> None:
    answer = client.get("/jobs?limt=3")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/limt"
    assert "'limit'" in answer.json()["detail"]


@pytest.mark.parametrize("value", ["0", "-1", "201", "x", "1e3", "9" * 400, "%00", "%ff"])
def test_PRED2_a_bad_limit_is_a_422(client: Client, value: str) -> None:
    assert client.get(f"/jobs?limit={value}").status_code == 422


@pytest.mark.parametrize("cursor", ["x", "e30", "WzFd", "%00", "WyIxIiwiMiJd", "a" * 399, "bnVsbA"])
def test_a_cursor_of_somebody_elses_making_is_a_422(client: Client, cursor: str) -> None:
    assert client.get("/jobs", params={"cursor": cursor}).status_code == 422


@pytest.mark.parametrize("time_", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "\ud800", "\0"])
def test_a_cursor_with_a_time_that_cannot_be_stored_is_a_422(client: Client, time_: str) -> None:
    cursor = pages.encode([time_, "00000000-0000-4000-8000-000000000000"])
    for path in ("/datasets", "/jobs", "/models", "/keys"):
        assert client.get(path, params={"cursor": cursor}).status_code == 422, path


@pytest.mark.parametrize("thing", ["datasets", "jobs", "models", "keys"])
def test_J5_malformed_ids_are_422_and_unknown_ones_404(client: Client, thing: str) -> None:
    assert client.get(f"/{thing}/not-a-uuid").status_code == 422
    answer = client.get(f"/{thing}/00000000-0000-4000-8000-000000000000")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("-not-found")


@pytest.mark.parametrize("text", ["a\x07b", "x" * 201, "\u202e\x1b[31m"])
def test_J6_text_has_no_control_characters_and_an_end(client: Client, text: str) -> None:
    answer = client.post("/keys", json={"name": text, "scopes": ["read"]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/name"


def test_a_client_s_text_is_shown_escaped_and_cut() -> None:
    assert printable("a\x00\ud800b") == "a\\x00\\ud800b"
    assert len(printable("x" * 10_000)) <= 200


def test_details_survive_being_json(client: Client) -> None:
    answer = client.get("/jobs", params={"\U0001f600\x01": "1"})
    assert answer.status_code == 422
    json.loads(answer.content.decode("ascii"))


def test_the_type_of_every_problem_resolves(client: Client) -> None:
    """As a page for people and as JSON for programs; without a network and without a key."""
    for code in problem_pages.texts():
        path = type_of(code)
        page = client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
        document = client.get(path).json()

        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert document["type"] == path
        assert document["happened"].endswith(".")
        assert document["remedy"].endswith(".")


def test_a_type_that_no_problem_has_is_a_404(client: Client) -> None:
    assert client.get("/problems/no-such-problem").status_code == 404
    assert client.get("/problems/not_found").status_code == 404
