"""What can be trained, as one JSON document: all that the service is told of `ml`.

JSON Schemas of the training spec and of every method's settings, and the lists of networks and noises.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from ml import methods, networks
from ml.noise import cifar
from ml.training import spec

if TYPE_CHECKING:
    from pydantic import BaseModel

NOISES: dict[spec.NoiseKind, str] = {
    "symmetric": "Uniform flips to any other class; the realised rate is the drawn one.",
    "symmetric_inclusive": "Uniform redraws that may hit the same class: 50 % over 10 classes is 45 % wrong.",
    "pairflip": "Each class flips to its successor only.",
    "asymmetric": "Similar classes: truck to automobile, bird to airplane, deer to horse, cat and dog; other class "
    "names in circles of five.",
    "asymmetric_circular": "Each class flips to the next of its block of five consecutive classes.",
    "asymmetric_superclass": "Each class flips to the next of its super-class; for the class names of CIFAR-100.",
    "asymmetric_pairs": "Two random classes of each block of five swap, so that 0.4 of the rate is wrong.",
    "transition": "By a given transition matrix.",
    "instance_dependent": "Each image has its own rate and its own wrong class.",
    "instance_dependent_shared": "The same with one projection for all classes, as in the experiments of CORES.",
    "confounded": "Drawn labels become the class that the image's background suggests, which a linear classifier of "
    "the border has learned; where that is the image's own class it stays.",
}
# What a request must say of a kind instead of a rate, and how many classes a kind is for, where it is for one number.
FITS: dict[spec.NoiseKind, dict[str, Any]] = {
    "transition": {"needs": "matrix"},
    "asymmetric_superclass": {"classes": len(cifar.FINE)},
}


def document() -> dict[str, Any]:
    """The whole catalog as plain JSON values, in a stable order."""
    return {
        "spec": schema(spec.TrainingSpec),
        "methods": [_method(name) for name in methods.names()],
        "networks": [{"name": name, **networks.about(name)} for name in networks.names()],
        "noises": noises(),
    }


def noises() -> list[dict[str, Any]]:
    """Every kind of noise: its name, a sentence, and what of `FITS` it has."""
    return [{"kind": kind, "summary": NOISES[kind], **FITS.get(kind, {})} for kind in get_args(spec.NoiseKind)]


def text() -> str:
    """The catalog as it is committed."""
    return json.dumps(document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema of a settings model, every default spelled out: pydantic leaves out those made by a factory."""
    found = model.model_json_schema()
    for name, field in model.model_fields.items():
        if field.default_factory is not None:
            found["properties"][name]["default"] = field.get_default(call_default_factory=True, validated_data={})
    return found


def _method(name: str) -> dict[str, Any]:
    module = methods.load(name)
    return {"name": name, **module.ABOUT, "params": schema(module.Params)}
