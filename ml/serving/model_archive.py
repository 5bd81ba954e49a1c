"""Published weights: one safetensors file and a manifest that says how to rebuild the model and proves it is whole.

A bundle appears complete or not at all, and is verified before use (INV4, K4). It holds no optimizer, no label and no
image of the training set except a handful of squares by which a predictor checks its arithmetic. No pickle.
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

from ml import errors, fsync
from ml.training.spec import TrainingSpec

if TYPE_CHECKING:
    from ml.training.trainer import Trainer

WEIGHTS, MANIFEST = "weights.safetensors", "manifest.json"
FORMAT = 1
CHECK_IMAGES = 32  # enough to notice arithmetic that changes one answer in twenty
CHECK = "check.images"  # uint8 (n, S, S, 3), beside the weights
MODEL = "model."  # prefix of the method's own tensors


class File(BaseModel):
    """What a file must be."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """How to rebuild a model. `digest` names the weights together with everything that changes an answer."""

    model_config = ConfigDict(frozen=True)

    format: int
    digest: str
    files: dict[str, File]
    spec: TrainingSpec
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    label_count: int  # of the training set: methods keep memories of that length
    metrics: dict[str, Any]


def save(folder: Path, training: Trainer, *, metrics: Mapping[str, Any] | None = None) -> Manifest:
    """Write a finished training's model to `folder`, which must not exist: a temporary folder beside it is renamed.

    Any error propagates and leaves nothing at `folder`.
    """
    if folder.exists():
        raise FileExistsError(f"{folder.name} exists already: a bundle is never overwritten")
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_file(_tensors(training), temporary / WEIGHTS)
        fsync.flush(temporary / WEIGHTS)
        manifest = _manifest(training, _file(temporary / WEIGHTS), metrics or {})
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
    """The manifest of a bundle whose weights have the recorded size and SHA-256; BundleCorrupt otherwise."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        if manifest.format != FORMAT:
            raise errors.BundleCorrupt(f"this model has format {manifest.format}, not {FORMAT}")
        found = _file(folder / WEIGHTS)
    except (OSError, ValidationError) as error:
        raise errors.BundleCorrupt("the model's files are missing or damaged") from error
    if manifest.files != {WEIGHTS: found} or manifest.digest != _digest(_facts(manifest), found):
        raise errors.BundleCorrupt("the model's files do not match their manifest")
    return manifest


def read(folder: Path) -> tuple[Manifest, dict[str, Tensor], Tensor]:
    """A verified bundle: manifest, the method's state, and the check squares uint8 (n, S, S, 3); BundleCorrupt."""
    manifest = verify(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
        check = tensors.pop(CHECK)
    except (OSError, SafetensorError, KeyError) as error:
        raise errors.BundleCorrupt("the model's weights cannot be read") from error
    return manifest, {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}, check


def _tensors(training: Trainer) -> dict[str, Tensor]:
    state = training.method.state_dict()
    tensors = {MODEL + name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return tensors | {CHECK: training.batches.sample(CHECK_IMAGES)}


def _manifest(training: Trainer, weights: File, metrics: Mapping[str, Any]) -> Manifest:
    facts = {
        "format": FORMAT,
        "spec": training.spec.model_dump(mode="json"),
        "classes": list(training.classes),
        "mean": [float(value) for value in training.mean],
        "std": [float(value) for value in training.std],
        "label_count": len(training.batches),
    }
    known = {"digest": _digest(facts, weights), "files": {WEIGHTS: weights}, "metrics": dict(metrics)}
    return Manifest.model_validate(facts | known)


def _facts(manifest: Manifest) -> dict[str, Any]:
    """What `digest` covers besides the weights; metrics change no answer."""
    return manifest.model_dump(mode="json", exclude={"digest", "files", "metrics"})


def _digest(facts: Mapping[str, Any], weights: File) -> str:
    canonical = json.dumps({**facts, "weights": weights.sha256}, sort_keys=True, ensure_ascii=False)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def _file(path: Path) -> File:
    return File(**fsync.fingerprint(path)._asdict())
