"""The catalog: complete, strict JSON, and true to the types it was made from."""

from __future__ import annotations

import json

import pytest

from app.catalog import Catalog
from ml import catalog, methods, networks
from ml.training.spec import DEFAULT_NETWORKS, NoiseSpec, TrainingSpec


@pytest.mark.parametrize("name", methods.names())
def test_every_default_and_every_preset_is_valid(name: str) -> None:
    module = methods.load(name)
    schema = catalog.schema(module.Params)
    defaults = {field: entry["default"] for field, entry in schema["properties"].items()}

    assert module.Params.model_validate(defaults) == module.Params()
    for preset in module.ABOUT["presets"].values():
        module.Params.model_validate(preset)
    assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize("name", methods.names())
def test_every_setting_says_what_it_is(name: str) -> None:
    module = methods.load(name)

    assert all(field.description for field in module.Params.model_fields.values())
    assert module.ABOUT["title"]
    assert module.ABOUT["idea"]


def test_the_specs_defaults_are_spelled_out() -> None:
    schema = catalog.schema(TrainingSpec)
    defaults = {field: entry["default"] for field, entry in schema["properties"].items()}

    assert TrainingSpec.model_validate(defaults) == TrainingSpec()


def test_every_kind_of_noise_is_described_and_has_the_field_it_needs() -> None:
    examples = {"rate": 0.3, "matrix": [[1.0, 0.0], [0.5, 0.5]]}
    for entry in catalog.noises():
        needed = entry["needs"]

        assert entry["title"]
        assert entry["summary"]
        assert NoiseSpec.model_validate({"kind": entry["kind"], needed: examples[needed]}).kind == entry["kind"]


def test_every_kind_of_device_has_a_default_network() -> None:
    assert set(DEFAULT_NETWORKS) == {"cpu", "cuda"}
    assert set(DEFAULT_NETWORKS.values()) <= set(networks.names())


@pytest.mark.parametrize("name", methods.names())
def test_service_and_command_line_choose_the_same_params(name: str) -> None:
    """Around every threshold of the method's rules, and without the fact."""
    rules = methods.load(name).ABOUT.get("rules", [])
    facts: list[dict[str, float]] = [{}]
    facts += [{rule["fact"]: rule["below"] + step} for rule in rules for step in (-0.01, 0.0, 0.01)]

    for known in facts:
        assert Catalog.load().suggested_params(name, known) == methods.suggested_params(name, known)
