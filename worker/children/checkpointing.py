"""The checkpoints of an attempt: resuming from the newest valid one, writing them, and waiting for disk space."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from app import local_files
from app.errors import Problem
from app.settings import Settings
from app.shared_storage import SharedStorage
from app.storage import CHECKPOINTS, Storage, fence_of
from ml import errors
from ml.training import checkpoint
from ml.training.checkpoint_writer import CheckpointWriter
from ml.training.trainer import Trainer
from worker.children import failures
from worker.children.job_context import JobContext
from worker.children.job_reporter import JobReporter

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between tries to write to a full disk
PUBLISHED_NEWEST = 2  # checkpoints of an attempt that stay in the object store


class Checkpointer:
    """Reads and writes the checkpoints of one attempt.

    Args:
        ctx: The attempt.
        settings: `disk_full_s`, for how long a full disk is tolerated.
        reporter: Records every checkpoint, and logs what goes wrong with one.
        trainer: Whose state is restored and written.
    """

    def __init__(self, ctx: JobContext, settings: Settings, reporter: JobReporter, trainer: Trainer) -> None:
        self._ctx = ctx
        self._settings = settings
        self._reporter = reporter
        self._trainer = trainer
        self._writer = CheckpointWriter(trainer, ctx.folder / CHECKPOINTS)
        self._saved_step = -1  # of the latest that is complete
        self._count = 0  # checkpoints this attempt has written
        self._publisher = (
            Publisher(ctx, ctx.files, settings.checkpoint_s) if isinstance(ctx.files, SharedStorage) else None
        )
        self._newest: Path | None = None  # that this attempt has written
        self._disk_full_since: float | None = None
        self._pause, self._next_try = FIRST_PAUSE_S, 0.0

    def resume(self) -> Path | None:
        """Restore the newest valid checkpoint of any earlier attempt that may be resumed from.

        Returns:
            Where it lies; None when the training starts from the beginning.

        Raises:
            CheckpointInvalid: It does not fit this version; the trainer may be half restored and must be built anew.
        """
        ctx, trainer = self._ctx, self._trainer
        # Oldest first. A retry from scratch ignores the attempts up to `restart_from`.
        folders = [
            attempt / CHECKPOINTS
            for attempt in reversed(ctx.files.attempts(ctx.job.id))
            if ctx.job.restart_from < fence_of(attempt) < ctx.fence
        ]
        folders += self._fetch_published()
        newest = checkpoint.newest(folders, config_hash=trainer.config_hash, data_hash=trainer.data_hash)
        for skipped in newest.skipped:
            name = skipped.path.parent.parent.name
            log.warning("checkpoint of %s not used: %s", name, skipped.detail)
            self._reporter.log("warning", f"A checkpoint of {name} is not used: {skipped.detail}.")
        if newest.state is not None:
            is_exact = _restore(trainer, newest.state)
            self._saved_step = trainer.step
            log.info("resumed at step %d", trainer.step)
            self._reporter.log("info", f"Resumed at step {trainer.step}, epoch {trainer.epoch + 1}.")
            if not is_exact:
                self._reporter.log(
                    "warning",
                    f"The checkpoint is of another kind of device than {trainer.device.type}: weights and place are "
                    "kept, and random numbers are drawn anew.",
                )
            for report in trainer.history:  # the killed attempt may not have written all of them to the database
                self._reporter.record_epoch(report.to_json())
        elif newest.skipped:
            self._reporter.log("warning", "No checkpoint can be used: the training starts again.")
        return newest.path

    def write_if_due(self, every_s: float) -> None:
        """Begin a checkpoint when the last one is `every_s` seconds old, or older where copying the state takes long.

        It is written while the training goes on. On a full disk it is tried again later.
        """
        if self._publisher is not None:
            self._record_published()
        if self._writer.has_ended:
            self.try_writing(self._collect)
        if time.monotonic() >= self._next_try and self._writer.is_due(every_s):
            self._writer.start()

    def write(self) -> None:
        """Write a checkpoint of this step, unless there is one, and wait until every host can read it."""
        self._write()
        if self._publisher is not None and self._newest is not None:
            self._publisher.publish(self._newest, wait=True)
            self._record_published()

    def _write(self) -> None:
        self._collect(wait=True)
        if self._trainer.step != self._saved_step:
            self._writer.start()
            self._collect(wait=True)

    def close(self) -> None:
        """Wait for what is being written."""
        self._writer.close()
        if self._publisher is not None:
            self._publisher.close()

    def _collect(self, *, wait: bool = False) -> None:
        """Record a checkpoint that has become complete; with `wait`, wait for one that is being written.

        Once this attempt has written `checkpoint.KEEP_NEWEST` of them, those of earlier attempts are deleted.
        """
        written = self._writer.collect(wait=wait)
        if written is None:
            return
        self._saved_step = written.step
        if self._publisher is None:
            self._record(written.path)
        else:
            self._newest = written.path
            self._publisher.publish(written.path)
            self._record_published()
        log.info("checkpoint at step %d in %.2f s, its copy in %.3f s", *written[1:])
        self._count += 1
        if self._count == checkpoint.KEEP_NEWEST:
            for folder in self._ctx.files.attempts(self._ctx.job.id):
                if fence_of(folder) < self._ctx.fence:
                    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    def _record(self, path: Path) -> None:
        """Record a checkpoint that is complete where every host can read it."""
        step = step_of(path)
        self._reporter.record_checkpoint(step, str(path.relative_to(self._ctx.files.job(self._ctx.job.id))))

    def _record_published(self) -> None:
        assert self._publisher is not None
        for path in self._publisher.collect():
            self._record(path)

    def _fetch_published(self) -> list[Path]:
        """The newest checkpoints that earlier attempts have published, on this host; as of `checkpoint.newest`."""
        ctx, folders = self._ctx, list[Path]()
        if self._publisher is None:
            return folders
        paths = [
            path
            for path in published(ctx.files, ctx.job.id)
            if ctx.job.restart_from < fence_of(path.parent.parent) < ctx.fence
        ]
        newest_first = sorted(paths, key=lambda path: (step_of(path), fence_of(path.parent.parent)), reverse=True)
        for path in newest_first[:PUBLISHED_NEWEST]:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                folders.append(ctx.files.fetch(path, hold=True, progress=self._fetching))
        return folders[::-1]

    def _fetching(self, done: int, total: int) -> None:
        self._reporter.check_cancelled()

    def write_last(self) -> None:
        """Write the state at the end of the training, so that publishing can be repeated without training again."""
        self.when_there_is_space(self._write)

    def when_there_is_space(self, write: Callable[[], None]) -> None:
        """Call `write` until the disk has space for it; raises what `try_writing` and `check_cancelled` raise."""
        while not self.try_writing(write):
            wait_until = time.monotonic() + self._pause
            while time.monotonic() < wait_until:
                self._reporter.check_cancelled()
                time.sleep(min(0.5, self._pause))

    def try_writing(self, write: Callable[[], None]) -> bool:
        """Call `write`; False when the disk is full.

        Raises:
            Failure: The disk has been full for `disk_full_s` (code `disk_full`).
        """
        try:
            write()
        except Exception as error:
            if not failures.is_disk_full(error):
                raise
            now = time.monotonic()
            self._disk_full_since = self._disk_full_since or now
            if now - self._disk_full_since > self._settings.disk_full_s:
                raise errors.Failure(
                    "the disk stayed full, so no checkpoint could be written", code="disk_full"
                ) from error
            log.warning("the disk is full; the checkpoint before stays, next try in %.0f s", self._pause)
            self._reporter.log("warning", "The disk is full: the checkpoint before stays, and writing is tried again.")
            self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
            self._next_try = now + self._pause
            return False
        self._disk_full_since, self._pause, self._next_try = None, FIRST_PAUSE_S, 0.0
        return True


class Publisher:
    """Publishes checkpoints to the object store in a thread, one at a time and the newest at that, so that another host
    can resume. A store that cannot be reached costs the training nothing.

    Args:
        ctx: The attempt.
        files: Has the object store.
        period_s: Seconds between two.
    """

    def __init__(self, ctx: JobContext, files: SharedStorage, period_s: float) -> None:
        self._ctx = ctx
        self._files = files
        self._period_s = period_s
        self._pool = ThreadPoolExecutor(1, "publish-checkpoint")
        self._running: Future[None] | None = None
        self._next = float("-inf")
        self._latest: Path | None = None  # that is there
        self._done: list[Path] = []
        self._count = 0

    def publish(self, path: Path, *, wait: bool = False) -> None:
        """Publish a checkpoint if it is time; with `wait`, at once, and return when it is there or has failed."""
        is_busy = self._running is not None and not self._running.done()
        if not wait and (is_busy or time.monotonic() < self._next):
            return
        if wait and self._running is not None:
            self._running.result()
        if path == self._latest:
            return
        self._next = time.monotonic() + self._period_s
        self._running = self._pool.submit(self._publish, path)
        if wait:
            self._running.result()

    def collect(self) -> list[Path]:
        """The checkpoints that became visible since the last call."""
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Wait for what is being published."""
        self._pool.shutdown()

    def _publish(self, path: Path) -> None:
        try:
            self._files.publish_copy(path, path)
        except FileNotFoundError:
            return  # a newer one has replaced it
        except (Problem, OSError) as error:
            log.warning("a checkpoint was not published: %s", error)
            return
        self._latest = path
        self._done.append(path)
        self._count += 1
        self._prune()

    def _prune(self) -> None:
        """Delete older checkpoints of this attempt, and those of earlier ones once it has enough of its own."""
        others = published(self._files, self._ctx.job.id)
        own = sorted((p for p in others if p.parent.parent == self._ctx.folder), key=step_of)
        old = own[:-PUBLISHED_NEWEST]
        if self._count >= PUBLISHED_NEWEST:
            old += [path for path in others if fence_of(path.parent.parent) < self._ctx.fence]
        for path in old:
            self._files.remove_published(path)


def published(files: Storage, job_id: uuid.UUID) -> list[Path]:
    """The checkpoints of a job in the object store; none without one."""
    return [path for path in files.published(files.job(job_id)) if path.parent.name == CHECKPOINTS]


def step_of(path: Path) -> int:
    """The step of a checkpoint, from the name of its folder."""
    return int(path.name.removeprefix("step-"))


def any_written(files: Storage, job_id: uuid.UUID) -> bool:
    """Whether an attempt at a job has left a checkpoint, on this host or in the object store."""
    here = (path for attempt in files.attempts(job_id) for path in (attempt / CHECKPOINTS).glob("*"))
    return any(True for _ in here) or bool(published(files, job_id))


def remove(files: Storage, job_id: uuid.UUID) -> None:
    """Delete the checkpoints of all attempts at a job."""
    for attempt in files.attempts(job_id):
        local_files.remove(attempt / CHECKPOINTS)
    for path in published(files, job_id):
        files.remove_published(path)


def _restore(trainer: Trainer, state: checkpoint.State) -> bool:
    """Restore a verified state, exactly or not; CheckpointInvalid when it no longer fits: one from before an update."""
    try:
        return trainer.restore(state)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise errors.CheckpointInvalid("the checkpoint was written by another version of this service") from error
