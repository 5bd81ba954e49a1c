"""What a request leaves open, filled in from the data set's size and the device that will train. Numbers with reasons.

| field | CPU | GPU |
|---|---|---|
| network | `small`: trains in minutes | `resnet18` |
| image_size | the data set's own, at most 64 | the data set's own |
| batch_size | 32 below 1,000 training images, 64 below 4,000, else 128: an epoch keeps enough steps | same |
| epochs | 200,000 images in all, within 8 and 40 | 2,500,000 images in all, within 30 and 100 |
| validation_fraction | the catalog's; 0 below 100 training images, where it would only take images away | same |
| params | the preset that the method's rules name for what ingest found out about the pictures | same |

All other fields have the catalog's defaults, which are the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.jobs import noise
from app.jobs.schemas import Baseline, TrainingRequest

NETWORKS = {"cpu": "small", "cuda": "resnet18"}
LARGEST_SIDE_ON_CPU = 64
IMAGES_SEEN = {"cpu": (200_000, 8, 40), "cuda": (2_500_000, 30, 100)}  # budget, fewest and most epochs
TOO_FEW_TO_VALIDATE = 100


class DataFacts(NamedTuple):
    """What ingest found out, as far as defaults depend on it."""

    train_images: int
    image_size: int | None
    label_version: int
    measured: Mapping[str, Any] = MappingProxyType({})  # every fact by name, for the rules of methods


def resolve(request: TrainingRequest, facts: DataFacts, device: str, catalog: Catalog) -> dict[str, Any]:
    """The request as JSON, every default filled in; InvalidRequest for labels that do not exist, or
    for noise that does not fit."""
    resolved = request.model_dump(mode="json")
    chosen = suggested(facts, device, catalog)
    resolved |= {name: value for name, value in chosen.items() if name not in request.model_fields_set}
    resolved["params"] = params(request, facts, catalog)
    beside = [one for one in request.compare_with if isinstance(one, Baseline)]
    resolved["compare_with"] = [{"method": one.method, "params": params(one, facts, catalog)} for one in beside]
    noise.check(resolved.get("noise"), facts.measured.get("classes"), catalog)
    if request.label_version is None:
        resolved["label_version"] = facts.label_version
    elif request.label_version > facts.label_version:
        detail = f"The newest label version is {facts.label_version}."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    return resolved


def params(asked: TrainingRequest | Baseline, facts: DataFacts, catalog: Catalog) -> dict[str, Any]:
    """A method's settings as they were asked for, or else as its rules choose for this data set."""
    if "params" in asked.model_fields_set:
        return asked.params
    return catalog.complete(asked.method, catalog.suited(asked.method, facts.measured))


def suggested(facts: DataFacts, device: str, catalog: Catalog) -> dict[str, Any]:
    where = "cuda" if device.startswith("cuda") else "cpu"
    images = max(1, facts.train_images)
    budget, fewest, most = IMAGES_SEEN[where]
    found: dict[str, Any] = {
        "batch_size": 32 if images < 1_000 else 64 if images < 4_000 else 128,
        "epochs": min(most, max(fewest, round(budget / images))),
    }
    if NETWORKS[where] in catalog.networks:
        found["network"] = NETWORKS[where]
    if facts.image_size:
        found["image_size"] = facts.image_size if where == "cuda" else min(facts.image_size, LARGEST_SIDE_ON_CPU)
    if images < TOO_FEW_TO_VALIDATE:
        found["validation_fraction"] = 0.0
    return found


def spec_of(resolved: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The part of a resolved request that `ml` reads."""
    return {name: resolved[name] for name in catalog.spec["properties"]}
