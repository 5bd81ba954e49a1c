"""The catalog: complete, strict JSON, and true to the types it was made from."""

from __future__ import annotations

import fnmatch
import json

import pytest

from app.catalog import Catalog
from ml import catalog, errors, methods, networks
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
def test_the_training_of_a_preset_is_a_spec(name: str) -> None:
    about = methods.load(name).ABOUT
    for pattern, fields in about.get("training", {}).items():
        spec = TrainingSpec.model_validate({"method": name, "pretrained": "tune" in fields, **fields})

        assert fnmatch.filter(about["presets"], pattern)
        assert spec.network in networks.names()
        assert pattern.startswith("photographs") or {"epochs", "batch_size", "learning_rate"} <= set(fields)


def test_published_trainings_have_the_decay_and_the_schedule_of_their_code() -> None:
    """Keras' l2(d) of the code of Forward is a weight decay of 2d; a cosine of SOP+ moves once an epoch."""
    forward = [methods.published_training("forward", name) for name in ("cifar10", "cifar100")]
    assert [fields["weight_decay"] for fields in forward] == [2e-4, 2e-3]

    sop_plus = methods.published_training("sop_plus", "cifar100 symmetric")
    assert (sop_plus["schedule"], sop_plus["schedule_unit"], sop_plus["weight_decay"]) == ("cosine", "epoch", 1e-3)
    assert methods.published_training("pes_semi", "cifar10 human")["network"] == "resnet34"
    assert methods.published_training("pes_semi", "cifar10 symmetric 20 %")["network"] == "preact_resnet18"
    for unknown in (("sop_plus", "cifar11"), ("co_teaching", "20 % noise")):
        with pytest.raises(errors.UnknownName):
            methods.published_training(*unknown)


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
