"""Checkpoints are written while the training goes on: of the step at which they were begun, and at little cost."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ml.data.dataset import LabeledImages
from ml.training import checkpoint, checkpoint_writer
from ml.training.checkpoint_writer import CheckpointWriter
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import same


@pytest.fixture
def trainer(spec: Callable[..., TrainingSpec], labeled: LabeledImages) -> Trainer:
    return Trainer.build(spec(augmentation="crop_flip"), labeled)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A disk on which nothing is complete before the event is set."""
    ready, fsync = threading.Event(), os.fsync

    def wait_and_sync(descriptor: int) -> None:
        ready.wait(60.0)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", wait_and_sync)
    yield ready
    ready.set()


def test_K1_the_training_goes_on_while_a_checkpoint_is_written(
    trainer: Trainer, disk: threading.Event, tmp_path: Path, spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    """And the checkpoint is of the step at which it was begun: resuming from it is exact."""
    events = iter(trainer)
    with closing(CheckpointWriter(trainer, tmp_path)) as writer:
        next(events)
        writer.start()
        list(events)  # to the end, though the disk is not ready
        assert (writer.has_ended, writer.collect(), writer.is_due(0.0)) == (False, None, False)
        assert not list(tmp_path.glob("step-1"))
        disk.set()
        written = writer.collect(wait=True)

    assert written is not None
    assert (written.step, written.path) == (1, tmp_path / "step-1")
    resumed = Trainer.build(spec(augmentation="crop_flip"), labeled)
    assert resumed.restore(checkpoint.read(written.path))
    list(resumed)
    assert same(resumed.state().tensors, trainer.state().tensors) == []


def test_K2_an_error_of_the_thread_reaches_the_training(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    events = iter(trainer)
    with closing(CheckpointWriter(trainer, tmp_path)) as writer:
        next(events)
        writer.start()
        assert writer.collect(wait=True) is not None
        next(events)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            writer.start()
            with pytest.raises(OSError, match="No space left"):
                writer.collect(wait=True)
        assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
        assert writer.collect(wait=True) is None  # told once
        writer.start()
        written = writer.collect(wait=True)

    assert written is not None
    assert written.step == 2


def test_the_loop_spends_a_fiftieth_of_its_time_at_most(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which every copy of the state takes 0.1 s: the next is due after 5 s."""
    now, cpu_s = 100.0, itertools.count(0.0, 0.1)
    clock = SimpleNamespace(monotonic=lambda: now, thread_time=lambda: next(cpu_s))
    monkeypatch.setattr(checkpoint_writer, "time", clock)
    with closing(CheckpointWriter(trainer, tmp_path)) as writer:
        now = 102.0
        assert writer.is_due(2.0)
        writer.start()
        writer.collect(wait=True)
        now = 106.9
        assert not writer.is_due(2.0)
        now = 107.1
        assert writer.is_due(2.0)
        assert not writer.is_due(60.0)


class Full(Tensor):
    """A tensor on a device without memory for another."""

    def clone(self, **_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_F18_a_state_that_does_not_fit_twice_on_the_device_is_copied_to_the_cpu() -> None:
    weights = torch.arange(6.0).reshape(2, 3)
    copy = checkpoint.snapshot(weights.as_subclass(Full), on_device=True)
    weights.zero_()

    assert copy.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
