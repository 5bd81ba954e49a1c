"""A training goes on from a checkpoint of another kind of device; the states of a GPU's generators are made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ml.data.dataset import LabeledImages
from ml.training import checkpoint
from ml.training.randomness import CONCERN, MODULES, Randomness
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import same

CPU_GENERATOR = torch.Generator
GPU_STATE = 16  # bytes: a seed and an offset


class GpuGenerator:
    """A generator of a GPU as far as its state goes."""

    def __init__(self) -> None:
        self._state = torch.zeros(GPU_STATE, dtype=torch.uint8)

    def manual_seed(self, seed: int) -> GpuGenerator:
        self._state = torch.tensor([*seed.to_bytes(8, "little"), *bytes(8)], dtype=torch.uint8)
        return self

    def get_state(self) -> Tensor:
        return self._state.clone()

    def set_state(self, state: Tensor) -> None:
        if len(state) != GPU_STATE:
            raise RuntimeError("RNG state is wrong size")
        self._state = state.clone()


def of_a_gpu(state: checkpoint.State) -> checkpoint.State:
    """The state as the same training has it on a GPU."""
    gpu = {f"random/{MODULES}1": torch.zeros(GPU_STATE, dtype=torch.uint8)}
    for name in state.tensors:
        if name.startswith(f"random/{CONCERN}"):
            gpu[name] = torch.arange(GPU_STATE, dtype=torch.uint8)
    return dataclasses.replace(state, tensors=state.tensors | gpu)


def test_F29_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(spec: Callable[..., TrainingSpec], labeled: LabeledImages) -> None:
    """With its weights, its place and its order; views are drawn anew, and in the same way each time."""
    whole = Trainer.build(spec(augmentation="crop_flip"), labeled)
    states = [whole.state() for event in whole if isinstance(event, Step)]
    written = of_a_gpu(states[4])
    ends: list[dict[str, Tensor]] = []
    for _ in range(2):
        resumed = Trainer.build(spec(augmentation="crop_flip"), labeled)
        assert not resumed.restore(written)
        now = resumed.state()
        assert (resumed.step, resumed.epoch) == (5, 1)
        assert same(now.under("method/"), states[4].under("method/")) == []
        assert torch.equal(now.tensors["random/order"], states[4].tensors["random/order"])
        list(resumed)
        ends.append(resumed.state().tensors)

    assert len(resumed.history) == 3
    assert same(*ends) == []
    assert same(ends[0], whole.state().tensors) != []


def test_F29_a_checkpoint_of_a_cpu_goes_on_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Randomness(7, torch.device("cpu"))
    cpu.generator("augmentation")
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator_on(torch.device(device)))
    gpu = Randomness(7, torch.device("cuda", 0))
    assert not gpu.restore(cpu.state(), step=12)
    reseeded = gpu.state()

    assert torch.equal(reseeded["order"], cpu.state()["order"])
    assert {name: len(reseeded[name]) for name in (f"{CONCERN}augmentation", f"{MODULES}1")} == {
        f"{CONCERN}augmentation": GPU_STATE, f"{MODULES}1": GPU_STATE
    }  # fmt: skip
    again, later = (Randomness(7, torch.device("cuda", 0)) for _ in range(2))
    again.restore(cpu.state(), step=12), later.restore(cpu.state(), step=13)
    assert same(again.state(), reseeded) == []
    assert same(later.state(), reseeded) == [f"{CONCERN}augmentation", f"{MODULES}0", f"{MODULES}1"]
    assert again.restore(reseeded, step=13)
    assert same(again.state(), reseeded) == []


def generator_on(device: torch.device) -> Any:
    return CPU_GENERATOR() if device.type == "cpu" else GpuGenerator()


def test_states_of_the_same_kind_of_device_are_restored_exactly() -> None:
    one, other = (Randomness(7, torch.device("cpu")) for _ in range(2))
    torch.rand(5, generator=one.generator("augmentation"))

    assert other.restore(one.state(), step=12)
    assert same(one.state(), other.state()) == []
