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

With pretrained weights (`docs/evidence/defaults.md` measures them at 160 px on a CPU):

| field | CPU | GPU |
|---|---|---|
| image_size | 160 | 224 |
| resize | as the weights were trained | same |
| tune, epochs | those of the method's first preset for such networks; else the last stage for 6 epochs | same |
| tune | all where the request asks for pixels that change, or for params that no frozen part goes with | same |
| learning_rate, layer_decay, batch_norm | 0.01, 0.7, pretrained where all of the network is tuned | same |
| params | those of the preset for this depth if the method has one | same |
| first_answer | yes, unless the request names a method | same |

All other fields have the catalog's defaults, which are the papers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any, NamedTuple

from app.catalog import Catalog
from app.errors import Fault, InvalidRequest
from app.jobs import noise, spec_check
from app.jobs.schemas import Baseline, TrainingRequest
from ml.formats import spec_rules
from ml.formats.weights_folder import WeightsRecord

LARGEST_SIDE_ON_CPU = 64
IMAGES_SEEN = {"cpu": (200_000, 8, 40), "cuda": (2_500_000, 30, 100)}  # budget, fewest and most epochs
TOO_FEW_TO_VALIDATE = 100
BACKBONE_SIDE = {"cpu": 160, "cuda": 224}  # pixels
TUNED = {"tune": "last", "epochs": 6}  # a pretrained network, by a method without a preset of its own for it
WHOLE = {"tune": "all", "learning_rate": 0.01, "layer_decay": 0.7, "batch_norm": "pretrained"}  # all of one


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
) -> list[dict[str, Any]]:
    """The request as JSON, with every default filled in, and then each of its baselines likewise.

    A baseline is the same request with another method, on the same split and seed; where the request does not say how
    deep and how long to train, it is trained as suits its method.

    Args:
        facts: Of the data set.
        device: What the job will be trained on: `cpu`, `cuda` or `cuda:1`.
        installed: Pretrained weights by name.

    Raises:
        InvalidRequest: The label version does not exist, settings exclude each other, or the noise does not fit the
            data set.
    """
    weights = choose_weights(request, catalog, installed)
    entries: list[TrainingRequest | Baseline] = [request]
    entries += [entry for entry in request.compare_with if isinstance(entry, Baseline)]
    bodies = [_complete(request, entry, facts, device, weights, catalog) for entry in entries]
    bodies[0]["compare_with"] = [{"method": body["method"], "params": body["params"]} for body in bodies[1:]]
    spec_check.check(bodies, catalog)
    noise.check(bodies[0].get("noise"), facts.measured.get("classes"), catalog)
    version = facts.label_version if request.label_version is None else request.label_version
    if version > facts.label_version:
        detail = f"The newest label version is {facts.label_version}."
        raise InvalidRequest(detail, errors=[Fault("/label_version", "unknown_label_version", detail)])
    return [{**body, "label_version": version} for body in bodies]


def _complete(
    request: TrainingRequest,
    entry: TrainingRequest | Baseline,
    facts: DataFacts,
    device: str,
    weights: WeightsRecord | None,
    catalog: Catalog,
) -> dict[str, Any]:
    """The body of one training: `entry` is the request itself, or one of its baselines."""
    body = request.model_dump(mode="json") | {"method": entry.method, "compare_with": []}
    sent = request.model_fields_set
    params = entry.params if "params" in entry.model_fields_set else None
    fields = suggest(facts, device, catalog)
    if weights is None and body["pretrained"]:
        fields["network"] = catalog.default_backbone  # refused with the command that installs it
    if weights is not None:
        tuning = suggest_tuning(entry.method, params, body, sent, catalog)
        params = tuning.params
        fields |= {
            "network": weights.name,
            "pretrained": True,
            "image_size": BACKBONE_SIDE["cuda" if device.startswith("cuda") else "cpu"],
            "resize": weights.resize,
            "first_answer": "method" not in sent,
            **tuning.fields,
        }
    body |= {name: value for name, value in fields.items() if name not in sent}
    if entry is not request:
        body["first_answer"] = False
    if params is None:
        params = catalog.suggested_params(entry.method, facts.measured)
    body["params"] = catalog.complete(entry.method, params)
    return body


def choose_weights(
    request: TrainingRequest, catalog: Catalog, installed: Mapping[str, WeightsRecord]
) -> WeightsRecord | None:
    """The pretrained weights that a request starts from; None where it starts at random, or they are not installed.

    Those of the network that the request names with `pretrained`, or by a name that only weights have; those of the
    default backbone where it names neither.
    """
    sent, fields = request.model_fields_set, request.model_dump(include={"network", "pretrained"})
    network = fields["network"] if "network" in sent else catalog.default_backbone
    is_pretrained = fields["pretrained"]
    if "pretrained" not in sent:
        is_pretrained = "network" not in sent or network not in catalog.networks
    return installed.get(network) if is_pretrained else None


class Tuning(NamedTuple):
    """How a pretrained network is trained by default."""

    fields: Mapping[str, Any]  # `tune`, `epochs` and how fast
    params: dict[str, Any] | None  # of the method; None leaves them to its rules


def suggest_tuning(
    method: str,
    params: dict[str, Any] | None,
    body: Mapping[str, Any],
    sent: AbstractSet[str],
    catalog: Catalog,
) -> Tuning:
    """Depth, epochs and params of a training that starts from pretrained weights.

    Args:
        method: Its name.
        params: Those that the client has sent, complete; None if it has sent none.
        body: The request's fields.
        sent: The names of those that the client has sent.
        catalog: Has the presets of methods.
    """
    # What the client asks for decides the depth: pixels that change need all of the network.
    depth = body["tune"] if "tune" in sent else "all" if spec_rules.pixel_changes(body) else None
    if params is not None and not catalog.fits_frozen_backbone(method, params):
        depth = depth or "all"
    deeper = {} if depth is None else WHOLE if depth == "all" else {"tune": depth}
    presets = catalog.tuned_presets(method)
    fitting = [preset for preset in presets if depth in (None, preset.training["tune"])]
    preset = next(iter(fitting or presets), None)
    if preset is None:
        return Tuning({**TUNED, **deeper}, params)
    fits_depth = bool(fitting) or depth != "all"  # params that are meant for a frozen part suit no other
    return Tuning({**preset.training, **deeper}, preset.params if params is None and fits_depth else params)


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
