"""Defaults of a training request that depend on the data set's size, the device that will train, and what is installed.

| field | CPU | GPU |
|---|---|---|
| network | the default backbone where its weights are installed; else the catalog's default of a CPU | of a GPU |
| batch_size | 32 below 1,000 training images, 64 below 4,000, else 128: an epoch keeps enough steps | same |
| validation_fraction | the catalog's; 0 below 100 training images, which are too few to hold any out | same |
| params | those of the preset that the method's rules choose by the facts of the data set | same |

Without pretrained weights:

| field | CPU | GPU |
|---|---|---|
| image_size | the data set's own, at most 64 | the data set's own |
| epochs | 200,000 images in all, within 8 and 40 | 2,500,000 images in all, within 30 and 100 |

With pretrained weights, `docs/evidence/defaults.md` has the reasons:

| field | CPU | GPU |
|---|---|---|
| image_size | 160 | 224 |
| resize | as the weights were trained | same |
| tune, epochs | those of the method's preset `photographs`; else the last stage for 6 epochs | same |
| tune | all where the request asks for augmentations that change pixels | same |
| params | those of the preset `photographs` if the method has it | same |
| first_answer | yes, unless the request names a method | same |

All other fields have the catalog's defaults, which are the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.jobs import noise, spec_check
from app.jobs.schemas import Baseline, TrainingRequest
from ml.formats.weights_folder import WeightsRecord

LARGEST_SIDE_ON_CPU = 64
IMAGES_SEEN = {"cpu": (200_000, 8, 40), "cuda": (2_500_000, 30, 100)}  # budget, fewest and most epochs
TOO_FEW_TO_VALIDATE = 100
BACKBONE_SIDE = {"cpu": 160, "cuda": 224}  # pixels
TUNED = {"tune": "last", "epochs": 6}  # a pretrained network, by a method without a preset of its own for it


class DataFacts(NamedTuple):
    """Facts of a data set, as far as defaults depend on them."""

    train_images: int
    image_size: int | None  # side in pixels, None where the images differ
    label_version: int  # the newest
    measured: Mapping[str, Any] = MappingProxyType({})  # every fact by name, for the rules of methods


def resolve(
    request: TrainingRequest,
    facts: DataFacts,
    device: str,
    catalog: Catalog,
    installed: Mapping[str, WeightsRecord] = MappingProxyType({}),
) -> dict[str, Any]:
    """The request as JSON, with every default filled in.

    Args:
        facts: Of the data set.
        device: What the job will be trained on: `cpu`, `cuda` or `cuda:1`.
        installed: Pretrained weights by name.

    Raises:
        InvalidRequest: The label version does not exist, settings exclude each other, or the noise does not fit the
            data set.
    """
    resolved = request.model_dump(mode="json")
    weights = choose_weights(request, catalog, installed)
    suggestions = suggest(facts, device, catalog) | suggest_of_weights(
        request, request.method, weights, device, catalog
    )
    resolved |= {name: value for name, value in suggestions.items() if name not in request.model_fields_set}
    resolved["params"] = choose_params(request, facts, catalog, resolved)
    baselines = [entry for entry in request.compare_with if isinstance(entry, Baseline)]
    resolved["compare_with"] = [
        {"method": baseline.method, "params": choose_params(baseline, facts, catalog, resolved)}
        for baseline in baselines
    ]
    spec_check.check(resolved, catalog)
    noise.check(resolved.get("noise"), facts.measured.get("classes"), catalog)
    if request.label_version is None:
        resolved["label_version"] = facts.label_version
    elif request.label_version > facts.label_version:
        detail = f"The newest label version is {facts.label_version}."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    return resolved


def baseline_fields(
    request: TrainingRequest, method: str, catalog: Catalog, device: str, installed: Mapping[str, WeightsRecord]
) -> dict[str, Any]:
    """Fields in which a baseline differs from the request: what suits its method, unless the request set it."""
    suggestions = suggest_of_weights(request, method, choose_weights(request, catalog, installed), device, catalog)
    fields = {name: value for name, value in suggestions.items() if name not in request.model_fields_set}
    return {**fields, "first_answer": False, "compare_with": []}


def choose_weights(
    request: TrainingRequest, catalog: Catalog, installed: Mapping[str, WeightsRecord]
) -> WeightsRecord | None:
    """The pretrained weights that a request starts from; None where it starts at random.

    Those of the network that the request names with `pretrained`; where it names neither, the default backbone.
    """
    if "network" in request.model_fields_set or "pretrained" in request.model_fields_set:
        named = getattr(request, "network", "") if "network" in request.model_fields_set else catalog.default_backbone
        return installed.get(str(named)) if getattr(request, "pretrained", False) else None
    return installed.get(catalog.default_backbone)


def choose_params(
    request: TrainingRequest | Baseline, facts: DataFacts, catalog: Catalog, resolved: Mapping[str, Any]
) -> dict[str, Any]:
    """The method's params: the request's, or, where it has none, those of the preset that fits.

    Args:
        request: The request, or one of its baselines.
        facts: Of the data set.
        resolved: The request with its defaults; only whether and how it uses pretrained weights counts.
    """
    if "params" in request.model_fields_set:
        return request.params
    preset = catalog.photographs(request.method) if resolved["pretrained"] else None
    if preset is not None and (isinstance(request, Baseline) or preset.training.get("tune") == resolved["tune"]):
        return catalog.complete(request.method, preset.params)
    return catalog.complete(request.method, catalog.suggested_params(request.method, facts.measured))


def check_depth(resolved: Mapping[str, Any], catalog: Catalog) -> None:
    """Refuse a training whose fields of pretrained networks contradict each other.

    Raises:
        InvalidRequest: A frozen part or a first answer without pretrained weights, or params of the method that need a
            frozen part where there is none.
    """
    faults = []
    if not resolved["pretrained"]:
        if resolved["tune"] != "all":
            faults.append(Fault("/tune", "needs_pretrained", "What is not tuned must be pretrained."))
        if resolved["first_answer"]:
            faults.append(Fault("/first_answer", "needs_pretrained", "A first answer needs pretrained weights."))
    for name, value in catalog.methods[resolved["method"]].get("frozen_backbone", {}).items():
        if resolved["params"].get(name) == value and (not resolved["pretrained"] or resolved["tune"] == "all"):
            detail = f"{value} needs pretrained weights, and tune other than all."
            faults.append(Fault(f"/params/{name}", "needs_frozen_backbone", detail))
    if faults:
        raise InvalidRequest(faults[0].detail, errors=faults)


def suggest_of_weights(
    request: TrainingRequest, method: str, weights: WeightsRecord | None, device: str, catalog: Catalog
) -> dict[str, Any]:
    """Values for the fields of the table "with pretrained weights", except params; none without weights."""
    if weights is None:
        return {}
    preset = catalog.photographs(method)
    tuned = dict(TUNED if preset is None else preset.training)
    if spec_check.pixel_changes(request.model_dump(mode="json")):
        tuned["tune"] = "all"  # a frozen part could not follow them
    return {
        "network": weights.name,
        "pretrained": True,
        "image_size": BACKBONE_SIDE["cuda" if device.startswith("cuda") else "cpu"],
        "resize": weights.resize,
        **tuned,
        "first_answer": "method" not in request.model_fields_set,
    }


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
