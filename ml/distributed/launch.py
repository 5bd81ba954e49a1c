"""Starts one process for each device with torch's own launcher, on one machine, and sees them end together.

The first process that fails ends the others at once. Processes are forked, so that what was imported is there: the
caller has one thread, has run no operator and made no CUDA call. No port is opened: they meet through a file. It knows
nothing of what they do.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

WATCH_S = 0.1  # how often the launcher looks at the processes
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class RankInfo(NamedTuple):
    """What one of the processes needs to know to meet the others."""

    rank: int
    size: int
    meeting: Path  # a file through which they meet; it does not exist before


class RankEnded(RuntimeError):
    """A process ended before its time; `status` is negative where a signal killed it."""

    def __init__(self, rank: int, status: int) -> None:
        super().__init__(f"rank {rank} ended with {status}")
        self.rank, self.status = rank, status


def launch(entry: Callable[..., T], size: int, *arguments: object) -> list[T]:
    """What `entry(seat, *arguments)` returned in each of `size` processes; RankEnded when one of them failed."""
    # asks the driver for GPUs in a way that leaves CUDA usable in forks
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for talkative in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(talkative).setLevel(logging.CRITICAL)  # pages about what RankEnded says
    before = [signal.getsignal(number) for number in SIGNALS]
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=size,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/launcher",
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method="fork",
            monitor_interval=WATCH_S,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        try:
            found: dict[int, T] = elastic_launch(config, _seated)(entry, Path(folder) / "meeting", arguments)
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise RankEnded(rank, failure.exitcode) from error
        finally:
            for number, handler in zip(SIGNALS, before, strict=True):
                signal.signal(number, handler)
    return [found[rank] for rank in range(size)]


def _seated(entry: Callable[..., T], meeting: Path, arguments: tuple[Any, ...]) -> T:
    for number in SIGNALS:  # the launcher's are inherited; a SIGINT says that it is gone
        signal.signal(number, signal.SIG_DFL)
    return entry(RankInfo(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), meeting), *arguments)
