"""Checkpoints on disk: written all or nothing, verified before use, the one before as a fallback.

A checkpoint is a folder `step-N` with `tensors.safetensors`, `facts.json` and `manifest.json` (format, and size and
SHA-256 of both). What is inside is the training's business; who reads and writes when, the caller's. No pickle.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ml import errors, fsync

FORMAT = 1
KEPT = 2  # the newest ones; the best is kept besides
TENSORS, FACTS, MANIFEST = "tensors.safetensors", "facts.json", "manifest.json"
STEP_FOLDER = re.compile(r"step-(\d+)")
MANIFESTED = ("step", "score", "config_hash", "data_hash")  # facts repeated in the manifest
OS_ERROR = re.compile(r"os error (\d+)")


@dataclass(frozen=True)
class State:
    """All of a training between two steps. `facts` is plain JSON and holds at least step, score and hashes."""

    tensors: dict[str, Tensor]  # on the CPU, contiguous, sharing no memory
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps since the beginning of the training, over all epochs."""
        return int(self.facts["step"])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by what follows."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was not used, and why."""

    path: Path
    detail: str


@dataclass(frozen=True)
class Newest:
    """What `newest` found: nothing usable means `state` and `path` are None."""

    state: State | None
    path: Path | None
    skipped: tuple[Skipped, ...]


def write(folder: Path, state: State) -> Path:
    """Make `folder/step-N` durable, verify it, and only then delete older ones (K2, K3). Returns its path.

    Any error, a full disk among them, propagates and leaves every earlier checkpoint as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step}"
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    for leftover in folder.glob("step-*.tmp-*"):  # of a writer that was killed: a folder has one writer at a time
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir()
        _save(state.tensors, temporary / TENSORS)
        (temporary / FACTS).write_text(json.dumps(state.facts, allow_nan=False), encoding="utf-8")
        for name in (TENSORS, FACTS):
            fsync.flush(temporary / name)
        files = {name: fsync.fingerprint(temporary / name)._asdict() for name in (TENSORS, FACTS)}
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
    """The manifest of a checkpoint whose files all have the recorded size and SHA-256; CheckpointInvalid otherwise."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise errors.CheckpointInvalid(f"{path.name} has format {manifest['format']!r}, not {FORMAT}")
        for name in (TENSORS, FACTS):
            if fsync.fingerprint(path / name)._asdict() != manifest["files"][name]:
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
    """The state in one checkpoint, verified; CheckpointInvalid otherwise."""
    verify(path)
    return _load(path)


def _load(path: Path) -> State:
    return State(load_file(path / TENSORS), json.loads((path / FACTS).read_text(encoding="utf-8")))


def newest(folders: Iterable[Path], *, config_hash: str, data_hash: str) -> Newest:
    """The newest checkpoint of this very training in any of the folders (one for each attempt, oldest first)."""
    found = [
        (int(match[1]), age, path)
        for age, folder in enumerate(folders)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := STEP_FOLDER.fullmatch(path.name))
    ]
    skipped: list[Skipped] = []
    for _, _, path in sorted(found, reverse=True):
        try:
            manifest = verify(path)
            check_owner(manifest, config_hash=config_hash, data_hash=data_hash)
            return Newest(_load(path), path, tuple(skipped))
        except errors.CheckpointInvalid as error:
            skipped.append(Skipped(path, error.detail))
    return Newest(None, None, tuple(skipped))


def check_owner(facts: dict[str, Any], *, config_hash: str, data_hash: str) -> None:
    """CheckpointInvalid if a manifest or a state's facts belong to another training: other spec or other data."""
    for key, own in (("config_hash", config_hash), ("data_hash", data_hash)):
        if facts[key] != own:
            raise errors.CheckpointInvalid(f"the checkpoint belongs to another training: its {key} differs")


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> State:
    """An optimiser's state as named tensors and JSON; parameters are told apart by position."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    state = optimizer.state_dict()
    for number, entries in state["state"].items():
        scalars[str(number)] = {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{number}/{name}"] = snapshot(value)
            else:
                scalars[str(number)][name] = value
    return State(tensors, {"groups": state["param_groups"], "scalars": scalars})


def unpack_optimizer(optimizer: torch.optim.Optimizer, prefix: str, state: State) -> None:
    """Put a packed state back into an optimiser over the same parameters."""
    entries: dict[int, dict[str, Any]] = {int(n): dict(values) for n, values in state.facts["scalars"].items()}
    for key, tensor in state.tensors.items():
        if key.startswith(prefix):
            number, _, name = key.removeprefix(prefix).partition("/")
            entries[int(number)][name] = tensor.clone()
    optimizer.load_state_dict({"state": entries, "param_groups": state.facts["groups"]})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # a file knows no memory layout, and a momentum laid out unlike its weight slows every step
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def snapshot(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later steps cannot change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _prune(folder: Path, step: int) -> None:
    """Keep the last two and the best; later steps come from a time line that was given up."""
    steps = {int(match[1]): path for path in folder.iterdir() if (match := STEP_FOLDER.fullmatch(path.name))}
    kept = set(sorted(number for number in steps if number <= step)[-KEPT:])
    scores = {number: _score(path) for number, path in steps.items() if number <= step}
    if any(score is not None for score in scores.values()):
        kept.add(max(scores, key=lambda number: (-1.0 if (s := scores[number]) is None else s, number)))
    for number, path in steps.items():
        if number not in kept:
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
    except SafetensorError as error:  # its own type for a full disk, too: callers wait for space on OSError (F15)
        if code := OS_ERROR.search(str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise
