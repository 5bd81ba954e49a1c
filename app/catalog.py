"""The catalog of what can be trained, which `python -m ml catalog` writes: methods, networks, noises, training fields.

JSON Schemas in it are turned into pydantic types, so that requests are validated without torch.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import PydanticCustomError

from ml.formats.preset_rules import choose_preset

CATALOG_FILE = Path(__file__).with_name("catalog.json")
BOUNDS = {  # JSON Schema's keywords and pydantic's
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
}
SIMPLE_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str, "boolean": bool, "null": None}
TIMM = "timm_"  # what the names of timm's networks begin with: they are known by their weights, not by the catalog
STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Preset(NamedTuple):
    """Named settings of a method."""

    params: dict[str, Any]
    training: dict[str, Any]  # fields of the training spec that go with them


class UnknownChoice(ValueError):
    """A method or network that is not in the catalog; its message lists those that are."""


class Catalog:
    """Methods, networks and noises by name, the default network of each kind of device, and the training spec.

    Args:
        document: The parsed `catalog.json`.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.methods: dict[str, dict[str, Any]] = {m["name"]: m for m in document["methods"]}
        self.networks: dict[str, dict[str, Any]] = {n["name"]: n for n in document["networks"]}
        self.noises: list[dict[str, Any]] = document.get("noises", [])
        self.default_networks: dict[str, str] = document.get("default_networks", {})  # by kind of device
        self.default_backbone: str = document.get("default_backbone", "")  # name of pretrained weights
        self.tensor_shapes: dict[str, Any] = document["tensor_shapes"]  # of weights: `ml.formats.tensor_shapes`
        self.spec: dict[str, Any] = document["spec"]
        self._params: dict[str, type[BaseModel]] = {}

    @classmethod
    def load(cls, path: Path = CATALOG_FILE) -> Catalog:
        return cls(json.loads(path.read_bytes()))

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The fields of the training spec, except `method` and `params`, as `pydantic.create_model` takes them."""
        properties, definitions = self.spec["properties"], self.spec.get("$defs", {})
        return {n: field_definition(s, definitions) for n, s in properties.items() if n not in {"method", "params"}}

    def params(self, method: str) -> type[BaseModel]:
        """The pydantic model of a method's params; UnknownChoice."""
        self.check("method", method, self.methods)
        if method not in self._params:
            self._params[method] = build_model(f"{camel(method)}Params", self.methods[method]["params"])
        return self._params[method]

    def complete(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """A method's params with every default filled in, those of its base method (`host`) too.

        Raises:
            UnknownChoice: There is no such method or base method.
            ValidationError: A param is unknown or invalid.
        """
        completed = self.params(method).model_validate(params).model_dump(mode="json")
        host = completed.get("host")
        if isinstance(host, str) and isinstance(completed.get("host_params"), dict):
            try:
                completed["host_params"] = self.complete(host, completed["host_params"])
            except ValidationError as error:
                raise prefix_locations(error, "host_params") from None
        return completed

    def suggested_params(self, method: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The params that a method's rules choose for a data set with these facts; {} are the defaults."""
        entry = self.methods[method]
        return choose_preset(entry.get("rules", []), entry["presets"], facts)

    def tuned_presets(self, method: str) -> list[Preset]:
        """The presets of a method that say how deep a pretrained network is tuned, the preferred one first."""
        entry = self.methods[method]
        trainings = entry.get("training", {})
        return [
            Preset(params, trainings[name])
            for name, params in entry["presets"].items()
            if "tune" in trainings.get(name, {})
        ]

    def fits_frozen_backbone(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether params may go with a frozen part of a network."""
        return all(params.get(name) == value for name, value in self.methods[method].get("frozen_backbone", {}).items())

    def renders_composites(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether a method sees composites that a pretrained backbone makes, beside the pictures."""
        return bool(self.methods[method].get("frozen_backbone")) and self.fits_frozen_backbone(method, params)

    def mixes(self, method: str, params: Mapping[str, Any]) -> bool:
        """Whether a method or its base method mixes images itself, so that a training of it cannot."""
        names = [name for name in (method, params.get("host")) if name in self.methods]
        return any(self.methods[name].get("mixes", False) for name in names)

    def check_network(self, name: str) -> None:
        """UnknownChoice unless the catalog has this network."""
        self.check("network", name, self.networks)

    def may_have_network(self, name: str) -> bool:
        """Whether a network is the catalog's or may be known by its weights: one with a tag, or one of timm."""
        architecture, _, tag = name.partition(".")
        return name in self.networks or (architecture in self.networks and bool(tag)) or name.startswith(TIMM)

    @staticmethod
    def check(kind: str, name: str, known: dict[str, Any]) -> None:
        """UnknownChoice with a suggestion and a list, unless `known` has this name of a `kind` (method, network)."""
        if name in known:
            return
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        listed = list(known)[:40]
        more = f" and {len(known) - 40} more" if len(known) > len(listed) else ""
        raise UnknownChoice(f"There is no such {kind}.{hint} Known: {', '.join(listed)}{more}.")

    def relative_cost(self, method: str, params: dict[str, Any]) -> float:
        """Cost of an epoch relative to cross-entropy with one network; `params` name the base method, if any."""
        return math.prod(self._costs(method, params))

    def networks_held(self, method: str, params: dict[str, Any]) -> int:
        """About how many networks are trained at once.

        A method counts as two when its relative cost rounds to 2 or more; with a base method, both are multiplied.
        """
        return math.prod(min(2, max(1, round(cost))) for cost in self._costs(method, params))

    def _costs(self, method: str, params: dict[str, Any]) -> list[float]:
        """Relative costs of the method and of its base method."""
        names = [name for name in (method, params.get("host")) if name in self.methods]
        return [float(self.methods[name].get("relative_cost", 1.0)) for name in names]


def prefix_locations(error: ValidationError, *prefix: str) -> ValidationError:
    """The same errors with `prefix` in front of each location."""
    lines = [{**line, "loc": (*prefix, *line["loc"])} for line in error.errors(include_url=False)]
    return ValidationError.from_exception_data(error.title, [to_line_error(line) for line in lines])


def to_line_error(line: dict[str, Any]) -> Any:
    """One of `ValidationError.errors()` as `ValidationError.from_exception_data` takes it, with the same message."""
    message = str(line["msg"]).replace("{", "(").replace("}", ")")
    return {"type": PydanticCustomError(line["type"], message), "loc": line["loc"], "input": None}


def build_model(name: str, schema: dict[str, Any], definitions: dict[str, Any] | None = None) -> type[BaseModel]:
    """A strict pydantic model of a JSON Schema object.

    Args:
        name: Name of the class.
        schema: The JSON Schema; its `properties` become fields.
        definitions: The `$defs` of an enclosing schema, which references may name besides its own.
    """
    inner = {**(definitions or {}), **schema.get("$defs", {})}
    fields = {
        n: field_definition(s, inner, n in schema.get("required", ())) for n, s in schema.get("properties", {}).items()
    }
    model: type[BaseModel] = create_model(name, __config__=STRICT, __doc__=schema.get("description"), **fields)  # type: ignore[call-overload]
    return model


def field_definition(schema: dict[str, Any], definitions: dict[str, Any], required: bool = False) -> tuple[Any, Any]:
    """Type and default of one field, as `pydantic.create_model` takes them.

    Args:
        schema: JSON Schema of the field.
        definitions: The `$defs` that it may refer to.
        required: Whether it has no default unless the schema names one.
    """
    default = ... if required and "default" not in schema else schema.get("default")
    if isinstance(default, (dict, list)):
        fresh = functools.partial(copy.deepcopy, default)
        return build_type(schema, definitions), Field(default_factory=fresh, description=schema.get("description"))
    return build_type(schema, definitions), Field(default=default, description=schema.get("description"))


def build_type(schema: dict[str, Any], definitions: dict[str, Any]) -> Any:
    """The Python type of a JSON Schema, as far as pydantic generates such for params; `definitions` are its `$defs`."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return build_type({"title": name, **definitions[name]}, definitions)
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return Union[tuple(build_type(s, definitions) for s in schema[union])]  # noqa: UP007 - built at run time
    kind = schema.get("type")
    if kind == "array":
        base: Any = list[build_type(schema.get("items", {}), definitions)]  # type: ignore[misc]
    elif kind == "object":
        if "properties" not in schema:
            return dict[str, Any]
        return build_model(schema.get("title", "Settings"), schema, definitions)
    else:
        base = SIMPLE_TYPES.get(str(kind), Any)
    bounds = {constraint: schema[keyword] for keyword, constraint in BOUNDS.items() if keyword in schema}
    return Annotated[base, Field(**bounds)] if bounds else base


def camel(name: str) -> str:
    """`co-teaching` and `co_teaching` as `CoTeaching`."""
    return "".join(part.capitalize() for part in name.replace("-", "_").split("_"))


def schema_of(type_: Any) -> dict[str, Any]:
    """JSON Schema of a built type, for the OpenAPI document."""
    return TypeAdapter(type_).json_schema(ref_template="#/components/schemas/{model}")
