"""The catalog: complete, strict JSON, and true to the types it was made from."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from ml import catalog, methods
from ml.training.spec import NoiseKind, NoiseSpec, TrainingSpec


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


def test_every_noise_is_described() -> None:
    assert set(catalog.NOISES) == set(get_args(NoiseKind))
    for entry in catalog.noises():
        needed = entry.get("needs", "rate")
        value = {"rate": 0.3, "matrix": [[1.0, 0.0], [0.5, 0.5]]}[needed]
        assert NoiseSpec.model_validate({"kind": entry["kind"], needed: value}).kind == entry["kind"]
