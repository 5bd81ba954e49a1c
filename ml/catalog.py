"""What can be trained, as one JSON document: all that the service knows of `ml`.

It holds the JSON Schemas of the training spec and of every method's settings, the networks with the default for each
kind of device, the kinds of noise, and which tensors pretrained weights of a network must have.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ml import methods, networks, noise
from ml.formats import tensor_shapes
from ml.training import spec

if TYPE_CHECKING:
    from pydantic import BaseModel


def document() -> dict[str, Any]:
    """The whole catalog as plain JSON values, in a stable order."""
    return {
        "spec": schema(spec.TrainingSpec),
        "methods": [_method(name) for name in methods.names()],
        "networks": [{"name": name, **networks.about(name)} for name in networks.names()],
        "default_networks": spec.DEFAULT_NETWORKS,
        "default_backbone": spec.DEFAULT_BACKBONE,
        "noises": noises(),
        "tensor_shapes": tensor_shapes.pack({name: networks.required_shapes(name) for name in networks.names()}),
    }


def noises() -> list[dict[str, Any]]:
    """Every kind of noise: its name and what its `ABOUT` says."""
    return [{"kind": kind, **noise.load(kind).ABOUT} for kind in noise.kinds()]


def text() -> str:
    """The catalog as it is committed."""
    return json.dumps(document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a settings model with every default, those made by a factory too, which pydantic leaves out."""
    document = model.model_json_schema()
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            document["properties"][name]["default"] = field.get_default(call_default_factory=True, validated_data={})
    return document


def _method(name: str) -> dict[str, Any]:
    module = methods.load(name)
    return {"name": name, **module.ABOUT, "params": schema(module.Params)}
