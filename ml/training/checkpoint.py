"""Checkpoints on disk: written completely or not at all, verified before use, the previous one kept as a fallback.

A checkpoint is a folder `step-N` with `tensors.safetensors`, `facts.json` and `manifest.json`, which has the format and
the size and SHA-256 of both files. Nothing is pickled. `ml.training.trainer_state` decides what the state contains.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ml import errors
from ml.formats import fsync

FORMAT = 2
KEEP_NEWEST = 2  # checkpoints; the best one is kept as well
TENSORS, FACTS, MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d+)")
MANIFESTED = ("step", "score", "config_hash", "data_hash")  # facts repeated in the manifest
OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class State:
    """The state of a training between two steps.

    Attributes:
        tensors: By name, without shared memory; to be written, on the CPU and contiguous (`on_cpu`).
        facts: Plain JSON, with at least `step`, `score`, `config_hash` and `data_hash`.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps taken in the whole training."""
        return int(self.facts["step"])

    def on_cpu(self) -> State:
        """The state with all tensors on the CPU, contiguous."""
        return State({name: tensor.to("cpu").contiguous() for name, tensor in self.tensors.items()}, self.facts)

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was not used."""

    path: Path
    detail: str  # why it was not used, a sentence


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint of a training that can be used."""

    state: State | None  # None if there is none
    path: Path | None  # None if there is none
    skipped: tuple[Skipped, ...]  # newer ones that cannot be used, the newest first


def write(folder: Path, state: State) -> Path:
    """Write `folder/step-N`, verify it, and only then delete older checkpoints (K2, K3).

    A folder has one writer at a time. Any error, like a full disk, leaves every earlier checkpoint as it was.

    Returns:
        The path of the checkpoint.

    Raises:
        OSError: It cannot be written.
        CheckpointInvalid: What was written does not verify.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step}"
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    for unfinished in folder.glob("step-*.tmp-*"):  # of a writer that was killed
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        # All files are on disk before the folder has its name
        temporary.mkdir()
        _save(state.tensors, temporary / TENSORS)
        (temporary / FACTS).write_text(json.dumps(state.facts, allow_nan=False), encoding="utf-8")
        for name in (TENSORS, FACTS):
            fsync.flush(temporary / name)
        files = {name: fsync.hash_file(temporary / name)._asdict() for name in (TENSORS, FACTS)}
        manifest = {key: state.facts.get(key) for key in MANIFESTED} | {"format": FORMAT, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, allow_nan=False), encoding="utf-8")
        fsync.flush(temporary / MANIFEST)
        fsync.flush(temporary)
        if target.exists():  # the same step again, after falling back to an earlier one
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync.flush(folder)
    verify(target)
    _prune(folder, state.step)
    return target


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises CheckpointInvalid if a file is not what the manifest says."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise errors.CheckpointInvalid(f"{path.name} has format {manifest['format']!r}, not {FORMAT}")
        for name in (TENSORS, FACTS):
            if fsync.hash_file(path / name)._asdict() != manifest["files"][name]:
                raise errors.CheckpointInvalid(f"{path.name}: {name} does not match its manifest")
        facts = json.loads((path / FACTS).read_bytes())
        if {key: manifest[key] for key in MANIFESTED} != {key: facts.get(key) for key in MANIFESTED}:
            raise errors.CheckpointInvalid(f"{path.name}: its manifest contradicts its facts")
        if path.name != f"step-{manifest['step']}":
            raise errors.CheckpointInvalid(f"{path.name}: its manifest is of step {manifest['step']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise errors.CheckpointInvalid(f"{path.name} is damaged: {type(error).__name__}: {error}") from error
    return manifest


def read(path: Path) -> State:
    """The state in a checkpoint. Raises CheckpointInvalid if it does not verify."""
    verify(path)
    return _load(path)


def _load(path: Path) -> State:
    return State(load_file(path / TENSORS), json.loads((path / FACTS).read_text(encoding="utf-8")))


def newest(folders: Iterable[Path], *, config_hash: str, data_hash: str) -> Newest:
    """The newest valid checkpoint of a training.

    Args:
        folders: Where its attempts have written, the oldest first.
        config_hash: `TrainingSpec.digest()` of the training.
        data_hash: `setup.data_hash()` of its data.
    """
    candidates = [
        (int(match[1]), age, path)
        for age, folder in enumerate(folders)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := STEP_FOLDER.fullmatch(path.name))
    ]
    skipped: list[Skipped] = []
    for _, _, path in sorted(candidates, reverse=True):
        try:
            manifest = verify(path)
            check_owner(manifest, config_hash=config_hash, data_hash=data_hash)
            return Newest(_load(path), path, tuple(skipped))
        except errors.CheckpointInvalid as error:
            skipped.append(Skipped(path, error.detail))
    return Newest(None, None, tuple(skipped))


def check_owner(facts: dict[str, Any], *, config_hash: str, data_hash: str) -> None:
    """Raise CheckpointInvalid if the facts of a state or a manifest are of another training: other spec, other data."""
    for key, own in (("config_hash", config_hash), ("data_hash", data_hash)):
        if facts[key] != own:
            raise errors.CheckpointInvalid(f"the checkpoint belongs to another training: its {key} differs")


def pack_optimizers(optimizers: Sequence[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The states of optimizers as named tensors and JSON. Parameters are known by their position."""
    tensors: dict[str, Tensor] = {}
    facts: list[dict[str, Any]] = []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        scalars: dict[str, dict[str, Any]] = {}
        for parameter, entries in state["state"].items():
            scalars[str(parameter)] = {}
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{number}/{parameter}/{name}"] = value
                else:
                    scalars[str(parameter)][name] = value
        facts.append({"groups": state["param_groups"], "scalars": scalars})
    return tensors, facts


def unpack_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor], facts: Sequence[dict[str, Any]]
) -> None:
    """Restore optimizers of the same parameters to the states that `pack_optimizers` returned."""
    for number, (optimizer, fact) in enumerate(zip(optimizers, facts, strict=True)):
        entries: dict[int, dict[str, Any]] = {int(n): dict(values) for n, values in fact["scalars"].items()}
        for key, tensor in tensors.items():
            owner, parameter, name = key.split("/", 2)
            if int(owner) == number:
                entries[int(parameter)][name] = tensor.clone()
        optimizer.load_state_dict({"state": entries, "param_groups": fact["groups"]})
        for weight, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    # a file has no memory layout, and a momentum laid out unlike its weight slows every step
                    values[name] = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)


def snapshot(tensor: Tensor, *, on_device: bool) -> Tensor:
    """A copy that later steps cannot change, on the CPU or on the tensor's device if it has the memory."""
    if on_device:
        with contextlib.suppress(torch.OutOfMemoryError):
            return tensor.detach().clone()
    return tensor.detach().to("cpu", copy=True).contiguous()


def _prune(folder: Path, step: int) -> None:
    """Keep the newest and the best up to `step`. Later ones are from before a fallback to an earlier checkpoint."""
    steps = {int(match[1]): path for path in folder.iterdir() if (match := STEP_FOLDER.fullmatch(path.name))}
    keep = set(sorted(number for number in steps if number <= step)[-KEEP_NEWEST:])
    scores = {number: _score(path) for number, path in steps.items() if number <= step}
    if any(score is not None for score in scores.values()):
        keep.add(max(scores, key=lambda number: (-1.0 if (s := scores[number]) is None else s, number)))
    for number, path in steps.items():
        if number not in keep:
            shutil.rmtree(path)


def _score(path: Path) -> float | None:
    try:
        score = json.loads((path / MANIFEST).read_bytes())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return score if isinstance(score, float) else None


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # also of a full disk: callers wait for space on OSError (F15)
        if code := OS_ERROR.search(str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise
