"""What several benchmarks time: the CPU seconds of a piece of work, an epoch of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from ml.training.trainer import EpochReport


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process that `work` takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def train_epoch(events: Iterator[object]) -> None:
    """Go through the events of a training up to the next report of an epoch."""
    while not isinstance(next(events), EpochReport):
        pass
