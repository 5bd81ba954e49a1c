"""What a request leaves open, filled in from the data set's size and the device that will train. Numbers with reasons.

| field | CPU | GPU |
|---|---|---|
| network | `small`: trains in minutes | `resnet18` |
| image_size | the data set's own, at most 64 | the data set's own |
| batch_size | 32 below 1,000 training images, 64 below 4,000, else 128: an epoch keeps enough steps | same |
| epochs | 200,000 images in all, within 8 and 40 | 2,500,000 images in all, within 30 and 100 |
| validation_fraction | the catalog's; 0 below 100 training images, where it would only take images away | same |

All other fields have the catalog's defaults, which are the papers'.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.jobs.schemas import TrainingRequest

NETWORKS = {"cpu": "small", "cuda": "resnet18"}
LARGEST_SIDE_ON_CPU = 64
IMAGES_SEEN = {"cpu": (200_000, 8, 40), "cuda": (2_500_000, 30, 100)}  # budget, fewest and most epochs
TOO_FEW_TO_VALIDATE = 100


class DataFacts(NamedTuple):
    """What ingest found out, as far as defaults depend on it."""

    train_images: int
    image_size: int | None
    label_version: int


def resolve(request: TrainingRequest, facts: DataFacts, device: str, catalog: Catalog) -> dict[str, Any]:
    """The request as JSON, every default filled in; InvalidRequest for labels that do not exist."""
    resolved = request.model_dump(mode="json")
    chosen = suggested(facts, device, catalog)
    resolved |= {name: value for name, value in chosen.items() if name not in request.model_fields_set}
    if request.label_version is None:
        resolved["label_version"] = facts.label_version
    elif request.label_version > facts.label_version:
        detail = f"The newest label version is {facts.label_version}."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    return resolved


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
