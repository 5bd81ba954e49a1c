"""One attempt at training on several devices: a process (rank) for each, and this one, which waits for their end.

Rank 0 does the attempt as a single process would: it alone listens to the supervisor, reports, writes checkpoints and
publishes. The others only compute. How a rank ends is written as a line of JSON into a pipe to this process, which then
ends the same way.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from app.errors import DatabaseUnavailable, StorageUnavailable
from app.settings import Settings
from ml import errors
from ml.data import dataset
from ml.distributed import launch, process_group
from ml.training.spec import TrainingSpec
from worker import control_channel
from worker.children import failures, train
from worker.children.job_context import JobContext
from worker.children.job_reporter import FencedOff, Interrupted, JobReporter
from worker.control_channel import ControlChannel

log = logging.getLogger(__name__)

# A rank that has lost another one waits this long to be killed: the launcher knows which of them ended first.
RANK_LOST_S = 10


def run(
    ctx: JobContext, settings: Settings, devices: Sequence[str], reporter: JobReporter, channel: ControlChannel
) -> None:
    """Train on all devices, and publish.

    Args:
        ctx: The attempt.
        settings: Threads, checkpoint periods and tolerances.
        devices: One for each rank.
        reporter: Used by rank 0; its database must have no open connection here.
        channel: Listened to by rank 0.

    Raises:
        RankEnded: A rank ended without an error of its own that it could relay.
        Exception: What `worker.children.train.run` raises, from rank 0 or else from the first rank that relayed one.
    """
    TrainingSpec.model_validate(ctx.job.spec)
    reading, writing = os.pipe()
    try:
        launch.launch(_run_rank, len(devices), ctx, settings, devices, reporter, channel, writing)
    except launch.RankEnded as ended:
        os.close(writing)
        with open(reading, encoding="utf-8", closefd=False) as lines:
            raise_relayed([json.loads(line) for line in lines], ended)
    else:
        os.close(writing)
    finally:
        os.close(reading)


def _run_rank(
    rank: launch.RankInfo,
    ctx: JobContext,
    settings: Settings,
    devices: Sequence[str],
    reporter: JobReporter,
    channel: ControlChannel,
    writing: int,
) -> None:
    """What each process does."""
    control_channel.die_with_parent()
    with _relaying_errors(rank.rank, writing):
        if rank.rank == 0:
            channel.listen()
            train.run(ctx, settings, devices, reporter, rank)
        else:
            _run_follower(ctx, settings, devices, rank)


def _run_follower(ctx: JobContext, settings: Settings, devices: Sequence[str], rank: launch.RankInfo) -> None:
    """The training of rank 0 once more, computing its share of each batch."""
    spec = TrainingSpec.model_validate(ctx.job.spec)
    group = train.join(rank, devices, settings)
    threads = train.threads_per_process(settings, devices)
    images, truth = dataset.load(
        ctx.dataset_folder,
        version=ctx.job.label_version,
        image_size=spec.image_size,
        resize=spec.resize,
        threads=threads,
    )
    train.build(spec, images, truth, settings, ctx, devices, group).run_follower()


@contextmanager
def _relaying_errors(rank: int, writing: int) -> Iterator[None]:
    try:
        yield
    except process_group.RankFailure as lost:  # not an error of this rank: wait to be killed
        log.warning("rank %d: %s", rank, lost)
        signal.alarm(RANK_LOST_S)
        signal.pause()
    except BaseException as error:
        line = relay_line(rank, error)
        log.info("rank %d ends: %s", rank, error, exc_info=line["outcome"] is None)
        os.write(writing, (json.dumps(line) + "\n").encode())
        raise


def relay_line(rank: int, error: BaseException) -> dict[str, Any]:
    """How a rank ended, as JSON for `raise_relayed`.

    Returns:
        `rank`, and `outcome`: one of interrupted, fenced_off, database_unavailable, storage_unavailable and failure,
        with its value. It is None for an error that another attempt may not meet.
    """
    return {"rank": rank, "outcome": _outcome(error)}


def _outcome(error: BaseException) -> dict[str, Any] | None:
    if isinstance(error, Interrupted):
        return {"interrupted": error.command}
    if isinstance(error, FencedOff):
        return {"fenced_off": True}
    if isinstance(error, DatabaseUnavailable):
        return {"database_unavailable": True}
    if isinstance(error, StorageUnavailable):
        return {"storage_unavailable": error.detail}
    if isinstance(error, errors.Failure):
        return {"failure": failures.describe_failure(error)}
    if isinstance(error, failures.RETRIED):
        return None
    log.exception("unexpected error")
    return {"failure": failures.error_document("internal_error", "An unexpected error ended the job.")}


def raise_relayed(lines: Sequence[dict[str, Any]], ended: launch.RankEnded) -> None:
    """Raise in this process what ended the ranks.

    Args:
        lines: Of `relay_line`, in any order. The first rank with an outcome decides.
        ended: Raised when no rank has one. When no rank wrote a line, this process dies by the signal that killed it.
    """
    ordered = sorted(lines, key=lambda line: int(line["rank"]))
    outcome: dict[str, Any] = next((line["outcome"] for line in ordered if line["outcome"] is not None), {})
    if "interrupted" in outcome:
        raise Interrupted(outcome["interrupted"])
    if "fenced_off" in outcome:
        raise FencedOff
    if "database_unavailable" in outcome:
        raise DatabaseUnavailable("the first rank could not reach the database")
    if "storage_unavailable" in outcome:
        raise StorageUnavailable(outcome["storage_unavailable"])
    if "failure" in outcome:
        failure = outcome["failure"]
        raise errors.Failure(failure["detail"], hint=failure["hint"], code=failure["code"])
    if ended.status < 0 and not lines:
        log.warning("%s", ended)
        os.kill(os.getpid(), -ended.status)
    raise ended
