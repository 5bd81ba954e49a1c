"""Starts one process for each device of a training, all on this machine, with torch's own launcher.

The first process that fails ends the others at once. Processes are forked, so that imported modules are there: the
caller must have one thread, and must not have run an operator or made a CUDA call. No port is opened; the processes
find each other through a file.
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

MONITOR_INTERVAL_S = 0.1  # how often the launcher looks at the processes
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class RankInfo(NamedTuple):
    """What a process needs in order to join the others; see `ml.distributed.process_group.ProcessGroup.join`."""

    rank: int  # from 0
    size: int  # number of processes
    rendezvous: Path  # a file that does not exist yet


class RankEnded(RuntimeError):
    """A process failed. `status` is its exit status, or minus the number of the signal that killed it."""

    def __init__(self, rank: int, status: int) -> None:
        super().__init__(f"rank {rank} ended with {status}")
        self.rank, self.status = rank, status


def launch(entry: Callable[..., T], size: int, *arguments: object) -> list[T]:
    """Run `entry(rank_info, *arguments)` in `size` processes and wait for all of them.

    Args:
        entry: A function that can be found by import. What it returns must be picklable.
        size: How many processes to start.
        *arguments: Further arguments of `entry`, the same for every process.

    Returns:
        What `entry` returned, by rank.

    Raises:
        RankEnded: One of the processes failed; the first that did.
    """
    # makes torch count GPUs without starting CUDA, which a fork would not survive
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log pages about what RankEnded says in a line
    handlers = [signal.getsignal(number) for number in SIGNALS]
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
            monitor_interval=MONITOR_INTERVAL_S,
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        try:
            results: dict[int, T] = elastic_launch(config, _run_rank)(entry, Path(folder) / "rendezvous", arguments)
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
            raise RankEnded(rank, failure.exitcode) from error
        finally:  # the launcher sets handlers of its own
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
    return [results[rank] for rank in range(size)]


def _run_rank(entry: Callable[..., T], rendezvous: Path, arguments: tuple[Any, ...]) -> T:
    for number in SIGNALS:  # the launcher's handlers are inherited; its end is signalled by SIGINT
        signal.signal(number, signal.SIG_DFL)
    return entry(RankInfo(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), rendezvous), *arguments)
