"""Types built from JSON Schema refuse and complete exactly as the pydantic models that the schema came from."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app import catalog
from app.catalog import Catalog, UnknownChoice


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a", "b"]
    rate: Annotated[float, Field(ge=0, lt=1)]


class Original(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: Annotated[int, Field(ge=1, le=10)] = 3
    factor: Annotated[float, Field(gt=0)] = 0.5
    flag: bool = True
    name: Annotated[str, Field(max_length=5)] = "x"
    inner: Inner | None = None
    several: Annotated[list[int], Field(max_length=2)] = Field(default=[])
    free: dict[str, Any] = Field(default={})


BUILT = catalog.build_model("Built", Original.model_json_schema())


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"count": 10, "factor": 1, "flag": False, "name": "abcde"},
        {"inner": {"kind": "a", "rate": 0.5}, "several": [1, 2], "free": {"x": [1]}},
        {"inner": None},
    ],
)
def test_what_the_original_accepts_is_accepted_and_completed_alike(value: dict[str, Any]) -> None:
    assert BUILT.model_validate(value).model_dump() == Original.model_validate(value).model_dump()


@pytest.mark.parametrize(
    "value",
    [
        {"count": 0},
        {"count": 11},
        {"count": True},
        {"count": "3"},
        {"count": 1.5},
        {"factor": 0},
        {"factor": float("nan")},
        {"flag": 1},
        {"name": "abcdef"},
        {"inner": {"kind": "c", "rate": 0.1}},
        {"inner": {"kind": "a", "rate": 1}},
        {"inner": {"kind": "a"}},
        {"inner": {"kind": "a", "rate": 0.1, "x": 1}},
        {"several": [1, 2, 3]},
        {"cuont": 1},
    ],
)
def test_what_is_out_of_bounds_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BUILT.model_validate(value)


def test_defaults_are_never_shared() -> None:
    BUILT.model_validate({}).free["x"] = 1  # type: ignore[attr-defined]
    assert BUILT.model_validate({}).free == {}  # type: ignore[attr-defined]


def test_the_committed_catalog_builds_and_completes_every_method() -> None:
    committed = Catalog.load()
    for name, method in committed.methods.items():
        settings = committed.complete(name, {})
        assert settings.keys() == method["params"].get("properties", {}).keys()
        for preset in method["presets"].values():
            committed.complete(name, preset)
    assert {"denll", "ce"} <= committed.methods.keys()
    with pytest.raises(UnknownChoice, match="denll"):
        committed.complete("denl", {})


def test_a_host_s_settings_are_completed_and_checked() -> None:
    committed = Catalog.load()
    complete = committed.complete("denll", {"host": "ce"})
    assert complete["host_params"] == committed.complete("ce", {})
    with pytest.raises(ValidationError) as caught:
        committed.complete("denll", {"host": "ce", "host_params": {"nope": 1}})
    assert caught.value.errors()[0]["loc"] == ("host_params", "nope")


@pytest.mark.parametrize(
    ("method", "params", "networks"),
    [("ce", {}, 1), ("denll", {"host": "ce"}, 2), ("dividemix", {}, 2), ("denll", {"host": "dividemix"}, 4)],
)
def test_a_dear_method_holds_two_networks_and_a_host_multiplies(
    method: str, params: dict[str, str], networks: int
) -> None:
    committed = Catalog.load()
    costs = [committed.methods[name]["relative_cost"] for name in (method, *params.values())]

    assert committed.networks_held(method, params) == networks
    assert committed.relative_cost(method, params) == pytest.approx(math.prod(costs))
