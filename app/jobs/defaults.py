"""Defaults of a training request that depend on the data set's size and on the device that will train.

| field | CPU | GPU |
|---|---|---|
| network | the catalog's default network of a CPU | the catalog's default network of a GPU |
| image_size | the data set's own, at most 64 | the data set's own |
| batch_size | 32 below 1,000 training images, 64 below 4,000, else 128: an epoch keeps enough steps | same |
| epochs | 200,000 images in all, within 8 and 40 | 2,500,000 images in all, within 30 and 100 |
| validation_fraction | the catalog's; 0 below 100 training images, which are too few to hold any out | same |
| params | those of the preset that the method's rules choose by the facts of the data set | same |

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

LARGEST_SIDE_ON_CPU = 64
IMAGES_SEEN = {"cpu": (200_000, 8, 40), "cuda": (2_500_000, 30, 100)}  # budget, fewest and most epochs
TOO_FEW_TO_VALIDATE = 100


class DataFacts(NamedTuple):
    """Facts of a data set, as far as defaults depend on them."""

    train_images: int
    image_size: int | None  # side in pixels, None where the images differ
    label_version: int  # the newest
    measured: Mapping[str, Any] = MappingProxyType({})  # every fact by name, for the rules of methods


def resolve(request: TrainingRequest, facts: DataFacts, device: str, catalog: Catalog) -> dict[str, Any]:
    """The request as JSON, with every default filled in.

    Args:
        facts: Of the data set.
        device: What the job will be trained on: `cpu`, `cuda` or `cuda:1`.

    Raises:
        InvalidRequest: The label version does not exist, or the noise does not fit the data set.
    """
    resolved = request.model_dump(mode="json")
    suggestions = suggest(facts, device, catalog)
    resolved |= {name: value for name, value in suggestions.items() if name not in request.model_fields_set}
    resolved["params"] = choose_params(request, facts, catalog)
    baselines = [entry for entry in request.compare_with if isinstance(entry, Baseline)]
    resolved["compare_with"] = [
        {"method": baseline.method, "params": choose_params(baseline, facts, catalog)} for baseline in baselines
    ]
    noise.check(resolved.get("noise"), facts.measured.get("classes"), catalog)
    if request.label_version is None:
        resolved["label_version"] = facts.label_version
    elif request.label_version > facts.label_version:
        detail = f"The newest label version is {facts.label_version}."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    return resolved


def choose_params(request: TrainingRequest | Baseline, facts: DataFacts, catalog: Catalog) -> dict[str, Any]:
    """The method's params: the request's, or, where it has none, those of the preset that fits the data set."""
    if "params" in request.model_fields_set:
        return request.params
    return catalog.complete(request.method, catalog.suggested_params(request.method, facts.measured))


def suggest(facts: DataFacts, device: str, catalog: Catalog) -> dict[str, Any]:
    """Values for the fields in the table at the top of this module, except params; `device` as in `resolve`."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    images = max(1, facts.train_images)
    budget, fewest, most = IMAGES_SEEN[kind]
    fields: dict[str, Any] = {
        "batch_size": 32 if images < 1_000 else 64 if images < 4_000 else 128,
        "epochs": min(most, max(fewest, round(budget / images))),
    }
    if (network := catalog.default_networks.get(kind)) in catalog.networks:
        fields["network"] = network
    if facts.image_size:
        fields["image_size"] = facts.image_size if kind == "cuda" else min(facts.image_size, LARGEST_SIDE_ON_CPU)
    if images < TOO_FEW_TO_VALIDATE:
        fields["validation_fraction"] = 0.0
    return fields


def spec_of(resolved: dict[str, Any], catalog: Catalog) -> dict[str, Any]:
    """The fields of a resolved request that make the training spec, which `ml` reads."""
    return {name: resolved[name] for name in catalog.spec["properties"]}
