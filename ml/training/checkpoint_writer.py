"""Writes the checkpoints of a training in a thread, so that the training goes on meanwhile.

The training loop copies the state on its device, and that is all it waits for; the thread moves the copy to the CPU,
writes and verifies it. Of the loop's time at most `SHARE` is spent: where a copy takes longer, checkpoints are rarer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from ml.training import checkpoint
from ml.training.trainer import Trainer

SHARE = 0.02  # of the time of a training loop that copying its state may take, counted in its thread's CPU time


class Written(NamedTuple):
    """A checkpoint that is complete on disk."""

    path: Path
    step: int
    seconds: float  # from the copy of the state until it was verified
    copying_s: float  # CPU seconds of the training's thread for the copy


class CheckpointWriter:
    """Writes one checkpoint at a time; to be used by the thread that trains, and closed by it.

    Args:
        trainer: Whose state is written.
        folder: As of `checkpoint.write`.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Written] | None = None
        self._started, self._copying_s = time.monotonic(), 0.0  # of the latest copy

    @property
    def has_ended(self) -> bool:
        """Whether a write has ended, well or not, that was not collected yet."""
        return self._writing is not None and self._writing.done()

    def is_due(self, every_s: float) -> bool:
        """Whether none is being written, and the last one was begun `every_s` seconds ago, or longer for `SHARE`."""
        waited_s = time.monotonic() - self._started
        return self._writing is None and waited_s >= max(every_s, self._copying_s / SHARE)

    def start(self) -> None:
        """Copy the state as it is now, and begin to write it. None may be being written."""
        assert self._writing is None, "collect the checkpoint before"
        self._started, cpu_started = time.monotonic(), time.thread_time()
        state = self._trainer.state(on_device=True)
        self._copying_s = time.thread_time() - cpu_started
        self._writing = self._pool.submit(self._write, state, self._started, self._copying_s)

    def collect(self, *, wait: bool = False) -> Written | None:
        """The checkpoint that was being written, if it is done; with `wait`, once it is done. None if there is none.

        Raises what `checkpoint.write` raises.
        """
        if self._writing is None or not (wait or self.has_ended):
            return None
        writing, self._writing = self._writing, None
        return writing.result()

    def close(self) -> None:
        """Wait for the thread. What it was writing is complete then, or is not there."""
        self._pool.shutdown()

    def _write(self, state: checkpoint.State, started: float, copying_s: float) -> Written:
        with _beside_training(self._trainer.device):
            state = state.on_cpu()
        path = checkpoint.write(self._folder, state)
        return Written(path, state.step, time.monotonic() - started, copying_s)


@contextlib.contextmanager
def _beside_training(device: torch.device) -> Iterator[None]:
    """On a GPU, a stream of its own: in that of the training, a copy would hold up all steps that follow it."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
    stream.wait_stream(torch.cuda.default_stream(device))  # where the state was copied
    with torch.cuda.stream(stream):
        yield
