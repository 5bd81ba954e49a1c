"""Model archives: a folder of one safetensors file and a manifest that says how to rebuild the model.

An archive appears complete or not at all, and is verified before use (INV4, K4). It holds no optimizer, no label and
no image of the training set except a few squares by which a predictor checks its arithmetic. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ml import errors
from ml.formats import fsync
from ml.training.spec import TrainingSpec

if TYPE_CHECKING:
    from ml.training.trainer import Trainer

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
FORMAT = 2  # of archives that `save` writes
READABLE = (1, 2)  # 1: preact_resnet18 had other shortcuts (`ml.networks.preact`)
CHECK_IMAGES = 32  # enough to notice arithmetic that changes one prediction in twenty
CHECK = "check.images"  # uint8 (n, S, S, 3), beside the weights
MODEL = "model."  # prefix of the method's own tensors


class FileFacts(BaseModel):
    """Size and digest that a file must have."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """How to rebuild a model. `digest` covers the weights and everything else that changes a prediction."""

    model_config = ConfigDict(frozen=True)

    format: int  # `FORMAT` of the version that wrote it
    digest: str  # "sha256:" and hexadecimal digits, see `compute_digest`
    files: dict[str, FileFacts]  # by name
    spec: TrainingSpec  # of the training
    classes: tuple[str, ...]  # names, in the order of the logits
    mean: tuple[float, float, float]  # of each channel, pixels in [0, 1]
    std: tuple[float, float, float]
    label_count: int  # of the training set: some methods have buffers of that length
    metrics: dict[str, Any]  # measures of the model that `save` was called with; no part of the digest


def save(folder: Path, training: Trainer, *, metrics: Mapping[str, Any] | None = None) -> Manifest:
    """Write a finished training's model.

    Args:
        folder: Must not exist. A temporary folder beside it is renamed to it, so any error leaves nothing there.
        training: A training whose epochs are over.
        metrics: What the manifest says of the model; no part of its digest. NaN and infinity become null.

    Returns:
        The manifest, verified.

    Raises:
        FileExistsError: `folder` exists.
        OSError: It could not be written.
    """
    if folder.exists():
        raise FileExistsError(f"{folder.name} exists already: a model is never overwritten")
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_tensors(training), temporary / WEIGHTS)
        fsync.flush(temporary / WEIGHTS)
        manifest = _manifest(training, _file_facts(temporary / WEIGHTS), metrics or {})
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
        fsync.flush(temporary / MANIFEST)
        fsync.flush(temporary)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync.flush(folder.parent)
    return verify(folder)


def verify(folder: Path) -> Manifest:
    """The manifest of an archive whose weights have the recorded size and SHA-256; ModelArchiveCorrupt otherwise."""
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(text)
        if manifest.format not in READABLE:
            raise errors.ModelArchiveCorrupt(f"this model has format {manifest.format}, and not one of {READABLE}")
        weights = _file_facts(folder / WEIGHTS)
    except (OSError, ValidationError) as error:
        raise errors.ModelArchiveCorrupt("the model's files are missing or damaged") from error
    if manifest.files != {WEIGHTS: weights} or manifest.digest != compute_digest(json.loads(text)):
        raise errors.ModelArchiveCorrupt("the model's files do not match their manifest")
    return manifest


def read(folder: Path) -> tuple[Manifest, dict[str, Tensor], Tensor]:
    """Manifest, state of the method, and check squares uint8 (n, S, S, 3); ModelArchiveCorrupt if damaged."""
    manifest = verify(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        check = tensors.pop(CHECK)
    except (OSError, SafetensorError, KeyError) as error:
        raise errors.ModelArchiveCorrupt("the model's weights cannot be read") from error
    return manifest, {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}, check


def _tensors(training: Trainer) -> dict[str, Tensor]:
    state = training.picture_method().state_dict()
    tensors = {MODEL + name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return tensors | {CHECK: training.batches.sample(CHECK_IMAGES)}


def compute_digest(document: Mapping[str, Any]) -> str:
    """The digest of a manifest: of its weights and of all other facts but the metrics, which change no prediction.

    Args:
        document: The manifest as its file has it, so without fields that the training spec has been given since.
    """
    facts = {name: value for name, value in document.items() if name not in ("digest", "files", "metrics")}
    weights = document["files"][WEIGHTS]["sha256"]
    canonical = json.dumps({**facts, "weights": weights}, sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _manifest(training: Trainer, weights: FileFacts, metrics: Mapping[str, Any]) -> Manifest:
    mean, std = (tuple(float(value) for value in values) for values in (training.mean, training.std))
    unsigned = Manifest.model_validate(
        {
            "format": FORMAT,
            "digest": "",
            "files": {WEIGHTS: weights},
            "spec": training.spec,
            "classes": training.classes,
            "mean": mean,
            "std": std,
            "label_count": len(training.batches),
            "metrics": dict(metrics),
        }
    )
    return unsigned.model_copy(update={"digest": compute_digest(unsigned.model_dump(mode="json"))})


def _file_facts(path: Path) -> FileFacts:
    return FileFacts(**fsync.hash_file(path)._asdict())
