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
def test_no_nonsense_is_a_server_error(client: Client, dataset_id: str) -> None:
    dice = random.Random(0)
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
                    headers={k: v.encode("latin-1") for k, v in headers.items()},
                )
                assert answer.status_code < 500 or answer.json()["type"] in AWAY, (method, filled, query, answer.text)


AWAY = {"/problems/inference-unavailable"}


def test_every_path_parameter_survives_every_oddity(client: Client) -> None:
    for thing, odd in itertools.product(("datasets", "jobs", "models", "aliases", "methods", "keys"), PATHS):
        if odd != "..":
            assert client.get(f"/{thing}/{odd}").status_code in (404, 422)


WRONG: list[Any] = [
    None, True, 0, -1, 1, 2, 0.5, 1.0, -0.0, 1e-300, 1e308, 2**31, 2**63, 2**64, 10**40, "", "x", "a\x00b", "auto",
    "cpu", "\ud800", "\U0001f600" * 300, [], [[]], [1, 2], ["ce", "denll"], ["ce"] * 50, {}, {"x": {}}, {"": None},
    {"kind": "symmetric", "rate": 0.3}, {"kind": "transition", "matrix": [[1, 0], [0, 1]]}, {"kind": "transition"},
    {"kind": "transition", "matrix": [[]]}, {"kind": "confounded", "rate": 2}, {"gpus": 2}, {"gpus": 0},
    {"max_seconds": 1e-9}, {"host": "denll"}, {"host": "pes"},
    {"host_params": {"host_params": {}}}, {"agreement": "both", "x": 1}, [0.5, 0.75], [0.75, 0.5], [2],
]  # fmt: skip
METHODS = ["denll", "ce", "elr", "co_teaching", "forward", "dividemix", "t_revision", "pes", "sop_plus"]


@pytest.mark.parametrize("seed", range(4))
def test_a_dry_run_and_a_job_judge_every_body_alike(client: Client, dataset_id: str, seed: int) -> None:
    rng = random.Random(seed)
    fields = [*client.get("/openapi.json").json()["components"]["schemas"]["TrainingJob"]["properties"], "unknown"]
    for number in range(60):
        body: dict[str, Any] = {
            "dataset_id": dataset_id,
            "method": rng.choice(METHODS),
            "network": "small",
            "epochs": 1,
        }
        for field in rng.sample(fields, rng.choice([1, 1, 2, 3])):
            body[field] = rng.choice(WRONG)
        text = json.dumps(body)
        answers = [
            client.post(path, content=text, headers={"Content-Type": "application/json", **key})
            for path, key in [
                ("/jobs?dry_run=true", {}),
                ("/jobs", {"Idempotency-Key": f"{seed}-{number}"}),
                ("/jobs", {"Idempotency-Key": f"{seed}-{number}"}),
            ]
        ]
        dry, job, again = answers
        assert max(answer.status_code for answer in answers) < 500, (text, [answer.text for answer in answers])
        assert (dry.status_code, job.status_code) == (200, 202) or dry.status_code == job.status_code, (
            text,
            dry.text,
            job.text,
        )
        assert again.status_code == job.status_code, text
        if job.status_code == 202:
            assert (again.json(), again.headers["idempotency-replayed"]) == (job.json(), "true")
            assert dry.json()["request"] == job.json()["request"], text
        else:
            assert [dry.json()[part] for part in ("type", "detail")] == [
                job.json()[part] for part in ("type", "detail")
            ]
