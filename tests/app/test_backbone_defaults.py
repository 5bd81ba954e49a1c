"""What a job does when nobody chooses, where a pretrained backbone is installed; and what a client's fields change."""

from __future__ import annotations

from typing import Any

import pytest

from app.jobs.defaults import WHOLE
from app.storage import Storage
from tests.app.conftest import Client
from tests.app.test_networks import install

BACKBONE = "efficientnet_lite0"


@pytest.fixture
def installed(files: Storage) -> None:
    install(files, BACKBONE, resize="crop", image_size=224)


def dry_run(client: Client, dataset_id: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, **fields})
    assert answer.status_code == 200, answer.text
    request: dict[str, Any] = answer.json()["request"]
    return request


def test_without_weights_a_job_starts_from_scratch(client: Client, dataset_id: str) -> None:
    request = dry_run(client, dataset_id)

    assert (request["network"], request["pretrained"], request["tune"]) == ("small", False, "all")
    assert request["first_answer"] is False


@pytest.mark.usefixtures("installed")
def test_a_job_starts_from_the_default_backbone(client: Client, dataset_id: str) -> None:
    request = dry_run(client, dataset_id)

    presets = client.get("/methods/denll").json()["presets"]
    assert (request["network"], request["pretrained"], request["first_answer"]) == (BACKBONE, True, True)
    assert (request["image_size"], request["resize"], request["tune"], request["epochs"]) == (160, "crop", "last", 4)
    assert presets["photographs"].items() <= request["params"].items()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pretrained": False}, {"network": "small", "pretrained": False, "tune": "all", "batch_norm": "batch"}),
        ({"network": "small"}, {"network": "small", "pretrained": False, "tune": "all"}),
        ({"method": "ce"}, {"tune": "last", "epochs": 6, "first_answer": False, "batch_norm": "batch"}),
        ({"method": "ce", "tune": "all"}, {"epochs": 6, **WHOLE}),
        ({"method": "ce", "tune": "all", "batch_norm": "batch"}, {**WHOLE, "batch_norm": "batch"}),
        ({"method": "ce", "first_answer": True}, {"first_answer": True}),
        ({"method": "forward_probe"}, {"tune": "none", "epochs": 1}),
        ({"method": "denll", "params": {"split": "median"}}, {"tune": "all"}),  # learns its own masks
        ({"tune": "all"}, {"epochs": 4, **WHOLE}),
        ({"method": "denll", "tune": "all", "params": {"split": "median"}}, {"epochs": 4, **WHOLE}),
        ({"tune": "all", "params": {"localization": "backbone"}}, {"tune": "all", "network": BACKBONE}),
        ({"method": "ce", "color_jitter": 0.2}, {"tune": "all"}),  # a frozen part sees no pixels that change
        ({"epochs": 2, "image_size": 96}, {"epochs": 2, "image_size": 96}),
    ],
)
def test_what_a_client_says_goes_before(
    fields: dict[str, Any], expected: dict[str, Any], client: Client, dataset_id: str
) -> None:
    assert expected.items() <= dry_run(client, dataset_id, **fields).items()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("tune", "host"), [("none", "forward_probe"), ("last", "elr"), ("two", "elr"), ("all", "ce")])
def test_the_preset_follows_the_depth(tune: str, host: str, client: Client, dataset_id: str) -> None:
    params = dry_run(client, dataset_id, tune=tune)["params"]

    assert (params["localization"], params["host"]) == ("backbone", host)


@pytest.mark.usefixtures("installed")
def test_a_baseline_is_trained_as_suits_its_method(client: Client, dataset_id: str) -> None:
    answer = client.post("/jobs", json={"dataset_id": dataset_id, "compare_with": ["ce", "forward_probe"], "seed": 3})
    jobs = [client.get(f"/jobs/{entry['id']}").json()["request"] for entry in answer.json()["comparison"]]

    trained = [(job["method"], job["tune"], job["epochs"], job["first_answer"], job["seed"]) for job in jobs]
    assert sorted(trained) == [
        ("ce", "last", 6, False, 3),
        ("denll", "last", 4, True, 3),
        ("forward_probe", "none", 1, False, 3),
    ]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("fields", [{"color_jitter": 0.3}, {"tune": "all"}])
def test_a_baseline_follows_the_depth_that_the_request_needs(
    fields: dict[str, Any], client: Client, dataset_id: str
) -> None:
    request = dry_run(client, dataset_id, method="ce", compare_with=["denll"], **fields)

    presets = client.get("/methods/denll").json()["presets"]
    assert presets["photographs whole"].items() <= request["compare_with"][0]["params"].items()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"pretrained": False, "tune": "last"}, "/tune"),
        ({"pretrained": False, "first_answer": True}, "/first_answer"),
        ({"pretrained": False, "batch_norm": "pretrained"}, "/batch_norm"),
        ({"pretrained": False, "params": {"localization": "backbone"}}, "/params/localization"),
        ({"tune": "last", "params": {"split": "median"}}, "/params/localization"),
        (
            {"tune": "last", "compare_with": [{"method": "denll", "params": {"split": "median"}}]},
            "/compare_with/0/params/localization",
        ),
        ({"tune": "last", "randaugment": 9}, "/randaugment"),
    ],
)
def test_fields_that_exclude_each_other_are_refused(
    fields: dict[str, Any], pointer: str, client: Client, dataset_id: str
) -> None:
    answer = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, **fields})

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_the_hint_names_the_backbone_that_is_not_installed(client: Client, dataset_id: str) -> None:
    answer = client.post("/jobs?dry_run=true", json={"dataset_id": dataset_id, "pretrained": True})

    assert answer.status_code == 422
    assert f"python -m ml weights add {BACKBONE}" in answer.json()["hint"]


def test_weights_that_only_their_name_tells_are_used(client: Client, dataset_id: str, files: Storage) -> None:
    install(files, "resnet18.satellite", parameters=11)

    assert dry_run(client, dataset_id, network="resnet18.satellite")["pretrained"] is True
