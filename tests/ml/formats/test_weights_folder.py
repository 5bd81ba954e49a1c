"""The folder of pretrained weights: what a record may say, which files count as weights, what is installed."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ml.formats import weights_folder
from ml.formats.weights_folder import InvalidWeights, WeightsRecord

TENSOR = {"dtype": "BF16", "shape": [4, 3], "data_offsets": [0, 24]}


def record(name: str = "resnet18", **changes: Any) -> WeightsRecord:
    values: dict[str, Any] = {
        "name": name,
        "network": name.partition(".")[0],
        "source": "somebody",
        "licence": "MIT",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.2, 0.2, 0.2),
        "image_size": 224,
        "resize": "crop",
        "parameters": 6,
        "digest": "0" * 64,
        "size": 3,
    }
    return WeightsRecord(**(values | changes))


def safetensors(path: Path, header: Any, data: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def install(folder: Path, made: WeightsRecord) -> None:
    file = weights_folder.temporary_file(folder)
    file.write_bytes(bytes(made.size))
    weights_folder.install(folder, file, made)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/b",
        "a\\b",
        ".hidden",
        "a.",
        "a.b.c",
        "a b",
        "a\n",
        "a\x00",
        "x" * 81,
        f"{'x' * 50}.{'y' * 50}",
        "nüll",
        "a..b",
    ],
)
def test_a_name_leads_to_no_other_folder(tmp_path: Path, name: str) -> None:
    for use in (weights_folder.weights_path, weights_folder.remove):
        with pytest.raises(InvalidWeights):
            use(tmp_path, name)
    assert weights_folder.read_record(tmp_path, name) is None


@pytest.mark.parametrize(
    "change",
    [
        {"network": "resnet34"}, {"licence": ""}, {"licence": "a\nb"}, {"source": "x" * 201}, {"mean": (0.5, 0.5)},
        {"mean": (float("nan"), 0.5, 0.5)}, {"std": (0.0, 0.2, 0.2)}, {"std": (True, 0.2, 0.2)}, {"image_size": 0},
        {"image_size": True}, {"image_size": 224.0}, {"resize": "pad"}, {"digest": "0" * 63}, {"digest": "G" * 64},
        {"parameters": 0}, {"size": -1}, {"source": 3},
    ],
)  # fmt: skip
def test_a_record_says_nothing_impossible(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidWeights):
        record(**change)


def test_a_record_returns_from_json_and_takes_no_other_fields() -> None:
    made = record("resnet18.satellite")
    document = json.loads(json.dumps(made.as_json()))

    assert WeightsRecord.from_json(document) == made
    broken_documents: list[Any] = [
        {**document, "more": 1},
        {k: v for k, v in document.items() if k != "std"},
        {**document, "std": 1},
        [],
    ]
    for broken in broken_documents:
        with pytest.raises(InvalidWeights):
            WeightsRecord.from_json(broken)


def test_installed_weights_are_listed_by_name_until_they_are_removed(tmp_path: Path) -> None:
    assert weights_folder.installed(tmp_path / "nowhere") == []
    for name in ("resnet34", "resnet18.b", "resnet18"):
        install(tmp_path, record(name))

    assert [made.name for made in weights_folder.installed(tmp_path)] == ["resnet18", "resnet18.b", "resnet34"]
    assert weights_folder.remove(tmp_path, "resnet18")
    assert not weights_folder.remove(tmp_path, "resnet18")
    assert [made.name for made in weights_folder.installed(tmp_path)] == ["resnet18.b", "resnet34"]
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{name}.{ending}" for name in ("resnet18.b", "resnet34") for ending in ("safetensors", "json")
    }


def test_weights_count_as_installed_only_with_a_record_of_their_size(tmp_path: Path) -> None:
    install(tmp_path, record())
    weights_folder.weights_path(tmp_path, "resnet18").write_bytes(bytes(2))
    weights_folder.weights_path(tmp_path, "resnet34").write_bytes(bytes(3))
    (tmp_path / "alexnet.json").write_text(json.dumps(record("alexnet").as_json()))
    (tmp_path / "vgg11.json").write_text("{")

    assert weights_folder.installed(tmp_path) == []


def test_a_record_under_another_name_is_none(tmp_path: Path) -> None:
    install(tmp_path, record())
    (tmp_path / "resnet18.json").write_text(json.dumps(record("resnet34").as_json()))

    assert weights_folder.read_record(tmp_path, "resnet18") is None


def test_weights_are_replaced_as_a_whole(tmp_path: Path) -> None:
    install(tmp_path, record())
    newer = dataclasses.replace(record(), size=5, licence="Apache-2.0")
    install(tmp_path, newer)

    assert weights_folder.installed(tmp_path) == [newer]


def test_the_header_of_a_safetensors_file_is_read_without_its_tensors(tmp_path: Path) -> None:
    file = safetensors(tmp_path / "x", {"__metadata__": {"a": "b"}, "w": TENSOR})

    assert weights_folder.read_header(file) == ({"w": ("BF16", (4, 3))}, {"a": "b"})


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""), (b"{", bytes(24)), (b"[]", b""), (b"{}", b""), (b"[" * 100_000, b""), (b"\xff{}", b""),
        ({"w": TENSOR}, bytes(23)), ({"w": TENSOR}, bytes(25)),
        ({"w": {**TENSOR, "dtype": "float"}}, bytes(24)), ({"w": {**TENSOR, "shape": [4, -3]}}, bytes(24)),
        ({"w": {**TENSOR, "shape": [4, 4]}}, bytes(24)), ({"w": {**TENSOR, "shape": [4.0, 3]}}, bytes(24)),
        ({"w": {**TENSOR, "shape": [True, 12]}}, bytes(24)), ({"w": {**TENSOR, "data_offsets": [4, 28]}}, bytes(28)),
        ({"w": {**TENSOR, "data_offsets": [-24, 0]}}, bytes(24)), ({"w": {"dtype": "BF16"}}, bytes(24)),
        ({"w": TENSOR, "v": TENSOR}, bytes(24)), ({"w": TENSOR, "__metadata__": {"a": 1}}, bytes(24)),
        ({"w": TENSOR, "__metadata__": []}, bytes(24)), ({"w": None}, bytes(24)),
        (b'{"w": {"dtype": "BOOL", "shape": [0], "data_offsets": [0, 0]}, "w": {"dtype": "BOOL", "shape": [24], '
         b'"data_offsets": [0, 24]}}', bytes(24)),
    ],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    with pytest.raises(InvalidWeights):
        weights_folder.read_header(safetensors(tmp_path / "x", header, data))


def test_a_length_beyond_the_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04", struct.pack("<Q", 1 << 62), struct.pack("<Q", 100) + b"{}"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InvalidWeights, match="no safetensors file"):
            weights_folder.read_header(tmp_path / "x")
