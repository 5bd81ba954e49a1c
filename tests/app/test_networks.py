"""Networks and pretrained weights: what is listed, how weights are installed and deleted, which jobs are refused."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.catalog import Catalog
from app.storage import Storage
from ml.formats import tensor_shapes, weights_folder
from ml.formats.weights_folder import WeightsRecord
from tests.app.conftest import BOTH, Client, FakeWorker

BYTES = {"Content-Type": "application/octet-stream"}
SAYS = "mean=0.1&mean=0.2&mean=0.3&std=0.4&std=0.5&std=0.6&image_size=32&resize=squash"
FACTS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 32, "resize": "squash"}
Shapes = dict[str, tuple[int, ...]]


def required(network: str) -> Shapes:
    """The tensors without which weights of a network are refused; positions of a transformer are of 49 patches."""
    shapes = tensor_shapes.unpack(Catalog.load().tensor_shapes, network)
    return {name: tuple(size or 50 for size in shape) for name, shape in shapes.items() if shape is not None}


SMALL = required("small")


def safetensors(shapes: Shapes = SMALL, **metadata: str) -> bytes:
    """A file with tensors of these shapes, a byte for each number, and this metadata."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape)
        header[name] = {"dtype": "BOOL", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def put(client: Client, name: str = "small", query: str = SAYS, content: bytes | None = None) -> Any:
    data = safetensors() if content is None else content
    return client.put(f"/weights/{name}?{query}", content=data, headers=BYTES)


def install(files: Storage, name: str = "small", **changes: Any) -> WeightsRecord:
    """Weights as `python -m ml weights add` installs them."""
    values: dict[str, Any] = {
        "name": name, "network": name.partition(".")[0], "source": "somebody", "licence": "MIT", **FACTS,
        "parameters": 3, "digest": "0" * 64, "size": 3,
    }  # fmt: skip
    record = WeightsRecord.from_json(values | changes)
    file = weights_folder.temporary_file(files.weights())
    file.write_bytes(bytes(record.size))
    weights_folder.install(files.weights(), file, record)
    return record


def left_over(files: Storage) -> set[str]:
    return {path.name for path in files.weights().iterdir()}


# GET


def test_networks_say_whether_their_weights_are_installed_and_how_to_add_them(client: Client, files: Storage) -> None:
    def network(name: str) -> Any:
        items = client.get("/networks?limit=200").json()["items"]
        [entry] = [item for item in items if item["name"] == name]
        return entry

    before = network("efficientnet_lite0")
    assert before["weights"] is None
    assert before["add_weights"] == "python -m ml weights add efficientnet_lite0"
    assert before["published"]["licence"] == "Apache-2.0"
    assert network("small")["add_weights"] is None  # nobody publishes any

    install(files, "efficientnet_lite0")
    after = network("efficientnet_lite0")
    assert after["add_weights"] is None
    assert (after["weights"]["mean"], after["weights"]["digest"]) == (FACTS["mean"], "sha256:" + "0" * 64)
    assert after["parameters"] == before["parameters"]


def test_weights_make_networks_known_that_the_catalog_does_not_have(client: Client, files: Storage) -> None:
    install(files, "timm_convnext_tiny.fb_in22k", parameters=28)
    install(files, "resnet18.satellite")
    names = [item["name"] for item in client.get("/networks?limit=200").json()["items"]]

    assert names[-2:] == ["resnet18.satellite", "timm_convnext_tiny.fb_in22k"]
    assert len(names) == len(set(names))


def test_installed_weights_are_listed_in_pages_with_an_etag(client: Client, files: Storage) -> None:
    for name in ("resnet18", "small", "vgg11"):
        install(files, name)
    first = client.get("/weights?limit=2")
    assert [item["name"] for item in first.json()["items"]] == ["resnet18", "small"]
    rest = client.get(f"/weights?limit=2&cursor={first.json()['next_cursor']}").json()
    assert ([item["name"] for item in rest["items"]], rest["next_cursor"]) == (["vgg11"], None)

    assert client.get("/weights?limit=2", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert client.get("/weights/small").json()["size_bytes"] == 3
    assert client.get("/weights/alexnet").status_code == 404


@pytest.mark.parametrize(
    "name", ["..%2fx", "a%2fb", ".hidden", "a%00b", "a%0a", "a..b", "a.b.c", "x" * 200, f"{'x' * 50}.{'y' * 50}"]
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_SEC2_a_name_is_no_path(client: Client, files: Storage, method: str, name: str) -> None:
    install(files, "small")
    before = left_over(files)
    answer = client.request(
        method, f"/weights/{name}", **({"content": safetensors(), "headers": BYTES} if method == "PUT" else {})
    )

    assert answer.status_code in (404, 405, 422)
    assert left_over(files) == before != set()


# PUT


def test_put_installs_what_the_request_says(client: Client, files: Storage) -> None:
    data = safetensors()
    answer = put(client, query=f"{SAYS}&licence=MIT&digest=sha256:{hashlib.sha256(data).hexdigest()}", content=data)

    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert {field: body[field] for field in FACTS} == FACTS
    assert (body["name"], body["licence"], body["source"], body["size_bytes"]) == (
        "small",
        "MIT",
        "uploaded",
        len(data),
    )
    assert client.get("/weights/small").json() == body
    assert weights_folder.weights_path(files.weights(), "small").read_bytes() == data
    assert put(client).status_code == 200
    assert left_over(files) == {"small.json", "small.safetensors"}


def test_put_takes_a_converted_file_without_any_parameter(client: Client) -> None:
    record = json.dumps({"name": "small", "source": "us", "licence": "MIT", **FACTS})
    answer = put(client, "small.mine", "licence=BSD", safetensors(weights_record=record))

    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["name"], body["network"], body["source"], body["licence"]) == ("small.mine", "small", "us", "BSD")
    assert body["mean"] == FACTS["mean"]


@pytest.mark.parametrize(
    ("content", "query", "status", "reason"),
    [
        (b"", SAYS, 422, "no safetensors file"),
        (b"PK\x03\x04" + bytes(1000), SAYS, 422, "no safetensors file"),
        (safetensors()[:-1], SAYS, 422, "do not fill it"),
        (safetensors({"w": (1000,)}), SAYS, 422, "body.0.weight (16x3x3x3) is missing; unexpected is w (1000)"),
        (
            safetensors({name: shape for name, shape in SMALL.items() if name != "body.4.running_var"}),
            SAYS,
            422,
            "The weights do not fit small: body.4.running_var (32) is missing.",
        ),
        (
            safetensors(SMALL | {"last_stage.0.weight": (96, 64, 1, 1)}),
            SAYS,
            422,
            "last_stage.0.weight is 96x64x1x1, not 96x64x3x3",
        ),
        (
            safetensors({f"module.{name}": shape for name, shape in SMALL.items()}),
            SAYS,
            422,
            "body.0.weight (16x3x3x3) is missing; remove module. from the names",
        ),
        (None, "", 422, "mean and std and image_size and resize"),
        (None, SAYS + "&digest=" + "0" * 64, 422, "has the SHA-256"),
        (None, SAYS.replace("std=0.4", "std=0"), 422, "std must be"),
        (None, SAYS.replace("mean=0.1&", ""), 422, "mean"),
        (None, SAYS.replace("squash", "pad"), 422, "resize"),
        (None, SAYS + "&licence=%0a", 422, "licence must be"),
        (safetensors(weights_record='{"mean": "x", "std": null}'), "image_size=32&resize=crop", 422, "another type"),
        (safetensors(weights_record="[" * 20_000), SAYS.replace("image_size=32&", ""), 422, "image_size"),
        (safetensors(weights_record="[" * 40_000), SAYS, 422, "at most 10000 tensors"),
    ],
)
def test_what_is_refused_leaves_nothing(
    client: Client, files: Storage, content: bytes | None, query: str, status: int, reason: str
) -> None:
    answer = put(client, query=query, content=content)

    assert answer.status_code == status, answer.text
    assert reason in answer.text
    assert left_over(files) == set()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("small", SMALL | {"classifier.weight": (37, 96), "classifier.bias": (37,)}),
        ("small", SMALL | {"body.0.weight": (16, 3, 7, 7), "auxiliary.weight": (2, 3)}),
        ("resnet18.own_names", {f"body.{name}": shape for name, shape in required("resnet18").items()}),
        ("vit_b_32", required("vit_b_32")),
    ],
    ids=["classes", "larger kernel", "own names", "positions"],
)
def test_put_takes_what_a_job_can_load(client: Client, name: str, shapes: Shapes) -> None:
    answer = put(client, name, content=safetensors(shapes))

    assert answer.status_code == 201, answer.text


def test_put_refuses_other_networks_media_types_and_sizes(
    client: Client, files: Storage, with_settings: Callable[..., Client]
) -> None:
    assert "unknown_network" in put(client, "resnet19").text
    assert put(client, "timm_anything.tag").status_code == 201
    assert client.put(f"/weights/small?{SAYS}", content=safetensors()).status_code == 415
    assert (
        with_settings(weights_bytes=1000)
        .put(f"/weights/small?{SAYS}", content=safetensors(), headers=BYTES)
        .status_code
        == 413
    )
    assert left_over(files) == {"timm_anything.tag.json", "timm_anything.tag.safetensors"}


def test_only_an_admin_changes_weights(with_settings: Callable[..., Client], files: Storage) -> None:
    admin = {"Authorization": f"Bearer {'k' * 32}"}
    client = with_settings(admin_key="k" * 32)
    key = client.post("/keys", json={"name": "trainer", "scopes": ["read", "train"]}, headers=admin).json()["key"]
    trainer = {"Authorization": f"Bearer {key}"}
    install(files)

    assert client.get("/weights", headers=trainer).status_code == 200
    assert client.put(f"/weights/small?{SAYS}", content=safetensors(), headers={**BYTES, **trainer}).status_code == 403
    assert client.delete("/weights/small", headers=trainer).status_code == 403
    assert client.get("/networks").status_code == 401
    assert client.delete("/weights/small", headers=admin).status_code == 204


# Jobs


@BOTH
def test_weights_that_a_job_needs_are_neither_deleted_nor_replaced(
    client: Client, files: Storage, submit: Callable[..., Any], fake_worker: FakeWorker
) -> None:
    install(files)
    install(files, "small.other")
    submit(network="small", pretrained=True, method="ce")
    for claimed in (False, True):
        if claimed:
            claim = fake_worker.claim()
        assert client.delete("/weights/small").status_code == 409
        assert put(client).status_code == 409
    assert client.delete("/weights/small.other").status_code == 204

    fake_worker.fail(claim)
    assert client.delete("/weights/small").status_code == 204
    assert client.delete("/weights/small").status_code == 404


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fields", "pointer", "command"),
    [
        ({"network": "resnet18", "pretrained": True}, "/pretrained", "`python -m ml weights add resnet18` installs"),
        ({"network": "small", "pretrained": True}, "/pretrained", "weights add FILE --network small`"),
        ({"network": "resnet18.mine", "pretrained": True}, "/network", "weights add FILE --network resnet18.mine`"),
        ({"network": "timm_resnet18"}, "/network", "weights add timm_resnet18`"),
        ({"network": "timm_../x", "pretrained": True}, "/network", ""),
    ],
)
def test_a_job_without_its_weights_is_refused_with_the_command(
    client: Client, dataset_id: str, fields: dict[str, Any], pointer: str, command: str, dry_run: bool
) -> None:
    answer = client.post(f"/jobs?dry_run={str(dry_run).lower()}", json={"dataset_id": dataset_id, **fields})

    assert answer.status_code == 422, answer.text
    [fault] = answer.json()["errors"]
    assert (fault["pointer"], fault["code"]) == (pointer, "missing_weights")
    assert command in answer.json()["hint"]


def test_a_network_that_fails_at_a_size_is_refused_there(client: Client, dataset_id: str) -> None:
    def answer(image_size: int) -> Any:
        body = {"dataset_id": dataset_id, "network": "alexnet", "method": "ce", "image_size": image_size}
        return client.post("/jobs?dry_run=true", json=body)

    assert answer(64).status_code == 200
    refused = answer(32)
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/image_size")
    assert "64 px" in refused.json()["detail"]


def test_a_job_with_installed_weights_is_accepted(files: Storage, submit: Callable[..., Any]) -> None:
    for name in ("resnet18", "resnet18.mine", "timm_resnet18"):
        install(files, name)
        assert submit(network=name, pretrained=True, method="ce")["request"]["network"] == name


def test_a_network_that_cannot_exist_is_unknown(client: Client, dataset_id: str) -> None:
    for name in ("resnet19", "resnet19.mine", "resnet18."):
        answer = client.post("/jobs", json={"dataset_id": dataset_id, "network": name})
        assert answer.json()["errors"][0]["code"] == "unknown_network"


def test_a_record_of_the_command_is_read_by_the_api(client: Client, files: Storage, tmp_path: Path) -> None:
    """What `ml` writes is what `app` reads."""
    from ml.networks import weights

    record = weights.add(files.weights(), "efficientnet_lite0")
    body = client.get("/weights/efficientnet_lite0").json()

    assert (body["digest"], body["size_bytes"]) == (f"sha256:{record.digest}", record.size)
    exported = weights.file_of(files.weights(), record).read_bytes()
    answer = put(client, "efficientnet_lite0.copy", "", exported)
    assert answer.status_code == 201
    assert {k: v for k, v in answer.json().items() if k != "name"} == {k: v for k, v in body.items() if k != "name"}
