"""Nonsense on every route: nothing but documented answers, and no server error (the client checks each answer)."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from tests.app.conftest import BOTH, Client

PATHS = ["%00", "..", "x" * 300, "00000000-0000-4000-8000-000000000000", "-1", "%F0%9F%98%80", "default"]
VALUES = ["", "%00", "-1", "9" * 30, "nan", "true", "%F0%9F%98%80", "a" * 500, "../..", "%ff", "1e400", "[]"]
BODIES: list[Any] = [
    None,
    0,
    "x",
    [],
    {},
    {"x": 1},
    {"name": None},
    {"inputs": [{}]},
    {"model_id": []},
    {"scopes": [{}]},
]
KINDS = ["application/json", "multipart/form-data; boundary=b", "image/png", "application/zip", "application/pdf"]


@BOTH
@pytest.mark.parametrize("seed", range(2))
def test_no_nonsense_is_a_server_error(client: Client, dataset_id: str, seed: int) -> None:
    dice = random.Random(seed)
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for _ in range(3):
                filled = path
                for name in [p["name"] for p in operation.get("parameters", []) if p["in"] == "path"]:
                    value = dataset_id if name == "dataset_id" and dice.random() < 0.5 else dice.choice(PATHS)
                    filled = filled.replace("{" + name + "}", value)
                names = [p["name"] for p in operation.get("parameters", []) if p["in"] == "query"]
                query = "&".join(f"{name}={dice.choice(VALUES)}" for name in names if dice.random() < 0.4)
                headers = {"Idempotency-Key": dice.choice(["k", "é", "a b", ""])} if dice.random() < 0.3 else {}
                content = None
                if method != "get":
                    body = dice.choice(BODIES)
                    content = json.dumps(body).encode() if dice.random() < 0.8 else dice.randbytes(200)
                    headers["Content-Type"] = dice.choice(KINDS)
                answer = client.request(
                    method.upper(),
                    f"{filled}?{query}",
                    content=content,
                    headers={k: v.encode("latin-1") for k, v in headers.items()},  # type: ignore[misc]
                )
                assert answer.status_code < 500 or answer.json()["type"] in AWAY, (method, filled, query, answer.text)


AWAY = {"/problems/inference-unavailable"}


def test_every_path_parameter_survives_every_oddity(client: Client) -> None:
    for thing, odd in itertools.product(("datasets", "jobs", "models", "aliases", "methods", "keys"), PATHS):
        if odd != "..":
            assert client.get(f"/{thing}/{odd}").status_code in (404, 422)
