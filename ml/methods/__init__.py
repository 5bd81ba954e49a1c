"""Discovery of methods: a file in this folder is a method, its file name the public name.

A method's module exports `Params` (a frozen pydantic model: bounds, defaults, descriptions), `Method` and `ABOUT`.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, NotRequired, Protocol, TypedDict, cast

from ml import errors
from ml.formats.preset_rules import choose_preset

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ml import method


class Rule(TypedDict):
    """When a preset suits a data set better than the defaults: if a fact that ingest measures is below a number."""

    preset: str
    fact: str
    below: float


class About(TypedDict):
    """A method's entry in the catalog."""

    title: str
    paper: str  # citation, or "" where there is none
    idea: str  # two sentences
    relative_cost: float  # of an epoch, with default params; plain cross-entropy is 1
    mixes: NotRequired[bool]  # whether it mixes images itself, so that the training cannot (`TrainingSpec.mixup`)
    needs: list[str]  # what the user must know or have: "noise rate", "class names" ...; mostly nothing
    presets: dict[str, dict[str, object]]  # name -> params
    # glob of presets -> fields of the training spec that go with them, mostly the paper's; the first match counts
    training: NotRequired[dict[str, dict[str, object]]]
    frozen_backbone: NotRequired[dict[str, object]]  # params that need pretrained weights, and that a frozen part needs
    rules: NotRequired[list[Rule]]  # for jobs that send no params: the service takes the first rule that holds


class MethodModule(Protocol):
    """The names every file in this folder exports."""

    ABOUT: About

    @property
    def Params(self) -> type[BaseModel]: ...  # noqa: N802 - a class, seen through a module

    @property
    def Method(self) -> type[method.Method]: ...  # noqa: N802


def names() -> tuple[str, ...]:
    """Every method, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> MethodModule:
    """The module of the method `name`.

    Raises:
        errors.UnknownName: if there is none.
    """
    if name not in names():
        raise errors.UnknownName(f"unknown method {name!r}", hint=f"one of {', '.join(names())}", code="unknown_method")
    return cast("MethodModule", importlib.import_module(f"{__name__}.{name}"))


def mixes(name: str, params: Mapping[str, object]) -> bool:
    """Whether a method, or its base method (`host`), mixes images itself.

    Args:
        name: of the method.
        params: its own.
    """
    host = params.get("host")
    return load(name).ABOUT.get("mixes", False) or (isinstance(host, str) and mixes(host, {}))


def preset(method: str, name: str) -> dict[str, object]:
    """The params of a method's preset `name`.

    Raises:
        errors.UnknownName: if the method does not exist or has no such preset.
    """
    known = load(method).ABOUT["presets"]
    if name not in known:
        raise errors.UnknownName(f"{method} has no preset {name!r}", hint=f"one of {', '.join(known)}")
    return dict(known[name])


def published_training(method: str, name: str) -> dict[str, object]:
    """The fields of the training spec that the paper has with a method's preset `name`, epochs among them.

    Raises:
        errors.UnknownName: if the method does not exist or has no such preset, or none with a published training.
    """
    about = load(method).ABOUT
    for pattern, fields in about.get("training", {}).items():
        if name in about["presets"] and fnmatch.fnmatchcase(name, pattern):
            return dict(fields)
    known = ", ".join(about.get("training", {})) or "none of this method"
    raise errors.UnknownName(f"{method} has no published training for a preset {name!r}", hint=f"there is {known}")


def suggested_params(name: str, facts: Mapping[str, object]) -> dict[str, object]:
    """The params that a method's rules choose for a data set; {} stands for the defaults.

    Args:
        name: of the method.
        facts: what ingest measured of the data set, by name.
    """
    about = load(name).ABOUT
    return choose_preset(about.get("rules", []), about["presets"], facts)
