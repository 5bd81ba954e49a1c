"""One attempt at training on several devices: a process for each, and this one, which waits for their end.

Rank 0 makes the attempt as a single process would: it alone holds the leash and the desk, writes checkpoints and
publishes. The others only compute along. How one ends is told in a line to this process, which ends the same way. What
is computed where, `ml.distributed.process_group` knows.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app import errors as problems
from ml import errors
from ml.data import dataset
from ml.distributed import launch, process_group
from ml.training.spec import TrainingSpec
from worker import control_channel
from worker.children import failures, train
from worker.children.job_reporter import FencedOff, Interrupted, JobContext

log = logging.getLogger(__name__)

LONELY_S = 10  # a rank that has lost another waits this long to be ended: the launcher knows who was lost


def run(given: JobContext) -> None:
    """As `train.run`, on all devices of the job; RuntimeError when a process ended without saying why."""
    TrainingSpec.model_validate(given.job.spec)
    given.engine.dispose()  # a connection belongs to one process
    reading, writing = os.pipe()
    try:
        launch.launch(_rank, len(given.devices), given, writing)
    except launch.RankEnded as ended:
        os.close(writing)
        with open(reading, encoding="utf-8", closefd=False) as lines:
            _end_as(sorted((json.loads(line) for line in lines), key=lambda told: int(told["rank"])), ended)
    else:
        os.close(writing)
    finally:
        os.close(reading)


def _rank(rank_info: launch.RankInfo, given: JobContext, writing: int) -> None:
    """What each process does."""
    control_channel.die_with_parent()
    with _telling(rank_info.rank, writing):
        if rank_info.rank == 0:
            given.tie.listen()
            train.run(given, rank_info)
        else:
            _run_follower(given, rank_info)


def _run_follower(given: JobContext, rank_info: launch.RankInfo) -> None:
    """The training of rank 0 once more."""
    spec = TrainingSpec.model_validate(given.job.spec)
    group = train.join(given, rank_info)
    images, truth = dataset.load(
        given.dataset, image_size=spec.image_size, resize=spec.resize, threads=train.threads(given)
    )
    train.build(given, spec, images, truth, group).run_follower()


@contextmanager
def _telling(rank: int, writing: int) -> Iterator[None]:
    try:
        yield
    except process_group.RankFailure as lost:
        log.warning("rank %d: %s", rank, lost)
        signal.alarm(LONELY_S)
        signal.pause()
    except BaseException as error:
        told = _told(error)
        log.info("rank %d ends: %s", rank, error, exc_info=told is None)
        os.write(writing, (json.dumps({"rank": rank, "told": told}) + "\n").encode())
        raise


def _told(error: BaseException) -> dict[str, Any] | None:
    """How an attempt ended, as JSON; None for what another attempt may not meet."""
    if isinstance(error, Interrupted):
        return {"interrupted": error.told}
    if isinstance(error, FencedOff):
        return {"fenced_off": True}
    if isinstance(error, problems.DatabaseUnavailable):
        return {"database_unavailable": True}
    if isinstance(error, errors.Failure):
        return {"failure": failures.of(error)}
    if isinstance(error, OSError | RuntimeError | MemoryError):
        return None
    log.exception("a mistake of ours")
    return {"failure": failures.error("internal_error", "An unexpected error ended the job.")}


def _end_as(found: list[dict[str, Any]], ended: launch.RankEnded) -> None:
    """Raise what the first rank, or else the next that knows, has told; die by the signal that killed a silent one."""
    told: dict[str, Any] = next((entry["told"] for entry in found if entry["told"] is not None), {})
    if "interrupted" in told:
        raise Interrupted(told["interrupted"])
    if "fenced_off" in told:
        raise FencedOff
    if "database_unavailable" in told:
        raise problems.DatabaseUnavailable("the database stayed away from the first rank")
    if "failure" in told:
        failure = told["failure"]
        raise errors.Failure(failure["detail"], hint=failure["hint"], code=failure["code"])
    if ended.status < 0 and not found:
        log.warning("%s", ended)
        os.kill(os.getpid(), -ended.status)
    raise ended
