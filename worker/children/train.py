"""One attempt at training: load, restore, iterate, checkpoint, publish.

The loop asks `ml` for the next event and decides what to do with it; `ml` knows neither database nor cancellation.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ml import errors
from ml.data import dataset
from ml.data.dataset import LabeledImages, Truth
from ml.distributed import process_group
from ml.distributed.launch import RankInfo
from ml.training import checkpoint, devices
from ml.training.events import EpochReport, Step
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from worker.children import failures, publish
from worker.children.job_reporter import Interrupted, JobContext

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between tries to write to a full disk
CHECKPOINTS = "checkpoints"


def run(given: JobContext, rank_info: RankInfo | None = None) -> None:
    """Train to the end and publish, with a `rank_info` as the first of several ranks.

    Raises Interrupted when told to stop, and ml.errors.Failure.
    """
    spec = TrainingSpec.model_validate(given.job.spec)
    images, truth = load(given, spec, threads(given))
    group = None if rank_info is None else join(given, rank_info)
    training = build(given, spec, images, truth, group)
    attempt = Attempt(given, training)
    resumed: Path | None = None
    try:
        resumed = attempt.resume()
    except errors.CheckpointInvalid as error:  # after half of it was restored: begin anew
        log.warning("not resumed: %s", error, exc_info=error.__cause__)
        given.desk.log("warning", f"The training starts again: {error.detail}.")
        training = build(given, spec, images, truth, group)
        attempt = Attempt(given, training)
    if group is not None:
        group.broadcast_object(None if resumed is None else str(resumed))
    attempt.train()
    if group is not None:
        group.leave()  # what follows needs no other process, and may wait for space longer than they would
    attempt.keep_result()
    publication = publish.Publication(given, training, images, truth)
    attempt.when_there_is_space(publication.write)
    given.desk.settle(publication.effect)
    publication.tidy()


def threads(given: JobContext) -> int:
    """CPU threads of each process of the attempt."""
    return max(1, (given.settings.threads or os.cpu_count() or 1) // len(given.devices))


def join(given: JobContext, rank_info: RankInfo) -> process_group.ProcessGroup:
    """Meet the other ranks. One that stays silent longer than a child may is lost."""
    device = devices.resolve(given.devices[rank_info.rank])
    return process_group.ProcessGroup.join(
        rank_info.rendezvous, rank_info.rank, rank_info.size, device, timeout_s=given.settings.stall_s
    )


def build(
    given: JobContext, spec: TrainingSpec, images: LabeledImages, truth: Truth, group: process_group.ProcessGroup | None
) -> Trainer:
    """The training of this job, on this process's device."""
    device = given.devices[0 if group is None else group.rank]
    return Trainer.build(
        spec,
        images,
        truth=truth,
        device=device,
        threads=threads(given),
        weights=given.files.weights(),
        group=group,
        cuda_graphs=given.settings.cuda_graphs,
    )


def load(given: JobContext, spec: TrainingSpec, processors: int) -> tuple[LabeledImages, Truth]:
    """The data set at the spec's size; making pixels of a size not seen before takes a while, and can be stopped."""
    shown = {"epoch": 0, "epochs": spec.epochs, "fraction": 0.0}

    def progress(done: int, total: int) -> None:
        given.desk.progress({"phase": f"preparing images, {done} of {total}", **shown})
        given.still_wanted()

    given.desk.progress({"phase": "loading", **shown})
    try:
        return dataset.load(
            given.dataset, image_size=spec.image_size, resize=spec.resize, threads=processors, progress=progress
        )
    except FileNotFoundError as error:
        raise errors.UnusableData("the data set's files are missing", code="dataset_corrupt") from error


def restore(training: Trainer, state: checkpoint.State) -> None:
    """Put back a verified state; CheckpointInvalid when it fits no more, as one from before an update may."""
    try:
        training.restore(state)
    except torch.OutOfMemoryError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise errors.CheckpointInvalid("the checkpoint was written by another version of this service") from error


class Pace:
    """How fast this attempt goes, from the steps it has seen."""

    def __init__(self, training: Trainer) -> None:
        self._epochs = training.epochs
        self._images = len(training.batches)
        self._began = self._mark = time.monotonic()
        self._fraction: float | None = None  # of the training, when this attempt saw its first step
        self._seen = 0.0  # images since the mark, each counted once an epoch, as in EpochReport
        self._speed: float | None = None

    def step(self, event: Step) -> None:
        self._seen += self._images / event.steps

    def progress(self, event: Step) -> dict[str, object]:
        """The fields of a job's progress (`GET /jobs/{id}`)."""
        now = time.monotonic()
        fraction = (event.epoch + (event.step + 1) / event.steps) / self._epochs
        if self._fraction is None:
            self._fraction, self._began = fraction, now
        if self._seen and now > self._mark:
            self._speed = self._seen / (now - self._mark)
        self._mark, self._seen = now, 0.0
        gained = fraction - self._fraction
        eta = (now - self._began) * (1 - fraction) / gained if gained > 0 else None
        return {
            "phase": event.phase,
            "epoch": event.epoch + 1,
            "epochs": self._epochs,
            "fraction": round(fraction, 4),
            "images_per_second": None if self._speed is None else round(self._speed, 1),
            "eta_seconds": None if eta is None else round(eta, 1),
        }


class Attempt:
    """A training under way, and what this attempt does besides: checkpoints, limits, orders."""

    def __init__(self, given: JobContext, training: Trainer) -> None:
        self._given = given
        self._settings, self._files, self._desk = given.settings, given.files, given.desk
        self._job, self._fence = given.job, given.fence
        self._training = training
        self._folder = given.folder / CHECKPOINTS
        self._began = time.monotonic()
        self._saved = (self._began, -1)  # when, and at which step
        self._own = 0  # checkpoints this attempt has written
        self._full_since: float | None = None
        self._pause, self._next_try = FIRST_PAUSE_S, 0.0

    def resume(self) -> Path | None:
        """Go on from the newest valid checkpoint of any attempt that may be resumed from; where it lies."""
        numbers = [int(path.name.removeprefix("attempt-")) for path in self._files.attempts(self._job.id)]
        folders = [
            self._files.attempt(self._job.id, number) / CHECKPOINTS
            for number in sorted(numbers)
            if self._job.restart_from < number < self._fence
        ]
        training = self._training
        newest = checkpoint.newest(folders, config_hash=training.config_hash, data_hash=training.data_hash)
        for skipped in newest.skipped:
            of = skipped.path.parent.parent.name
            log.warning("checkpoint of %s not used: %s", of, skipped.detail)
            self._desk.log("warning", f"A checkpoint of {of} is not used: {skipped.detail}.")
        if newest.state is not None:
            restore(training, newest.state)
            self._saved = (time.monotonic(), training.step)
            log.info("resumed at step %d", training.step)
            self._desk.log("info", f"Resumed at step {training.step}, epoch {training.epoch + 1}.")
            for report in training.history:
                self._desk.epoch(report.to_json())
        elif newest.skipped:
            self._desk.log("warning", "No checkpoint can be used: the training starts again.")
        return newest.path

    def train(self) -> None:
        """Iterate to the end."""
        training, desk, pace = self._training, self._desk, Pace(self._training)
        try:
            for number, event in enumerate(training):
                if number == 0:
                    log.info("first step")
                self._given.tie.beat()
                if isinstance(event, EpochReport):
                    desk.epoch(event.to_json())
                    self._checkpoint_if_due(self._settings.checkpoint_min_s)
                else:
                    pace.step(event)
                    self._checkpoint_if_due(self._settings.checkpoint_s)
                if desk.due():
                    if isinstance(event, Step):
                        desk.progress(pace.progress(event))
                    desk.turn()
                    self._check_time()
        except Interrupted as stop:
            if stop.told == "drain":
                self.checkpoint()
            raise

    def keep_result(self) -> None:
        """Write the last checkpoint: publishing can be repeated without training again."""
        if self._training.step != self._saved[1]:
            self.when_there_is_space(self.checkpoint)

    def checkpoint(self) -> None:
        """Write a checkpoint and point at it; older attempts' ones go once two of ours are verified."""
        started = time.monotonic()
        path = checkpoint.write(self._folder, self._training.state())
        self._saved = (time.monotonic(), self._training.step)
        self._desk.checkpointed(self._training.step, str(path.relative_to(self._files.job(self._job.id))))
        log.info("checkpoint at step %d in %.2f s", self._training.step, time.monotonic() - started)
        self._own += 1
        if self._own == checkpoint.KEPT:
            for folder in self._files.attempts(self._job.id):
                if int(folder.name.removeprefix("attempt-")) < self._fence:
                    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)

    def when_there_is_space(self, write: Callable[[], None]) -> None:
        """Write, waiting for space as long as a full disk is tolerated."""
        while not self._tried(write):
            wait_until = time.monotonic() + self._pause
            while time.monotonic() < wait_until:
                self._given.still_wanted()
                time.sleep(min(0.5, self._pause))

    def _checkpoint_if_due(self, every_s: float) -> None:
        now = time.monotonic()
        if now - self._saved[0] >= every_s and now >= self._next_try:
            self._tried(self.checkpoint)

    def _tried(self, write: Callable[[], None]) -> bool:
        """Whether it could be written; a full disk is an answer, for `disk_full_s`."""
        try:
            write()
        except Exception as error:
            if not failures.disk_full(error):
                raise
            now = time.monotonic()
            self._full_since = self._full_since or now
            if now - self._full_since > self._settings.disk_full_s:
                raise errors.Failure(
                    "the disk stayed full, so no checkpoint could be written", code="disk_full"
                ) from error
            log.warning("the disk is full; the checkpoint before stays, next try in %.0f s", self._pause)
            self._desk.log("warning", "The disk is full: the checkpoint before stays, and writing is tried again.")
            self._pause = min(LONGEST_PAUSE_S, 2 * self._pause)
            self._next_try = now + self._pause
            return False
        self._full_since, self._pause, self._next_try = None, FIRST_PAUSE_S, 0.0
        return True

    def _check_time(self) -> None:
        """`limits.max_seconds` counts training, over all attempts, and not the waiting in between."""
        limit = self._job.limits.get("max_seconds")
        if limit is None:
            return
        earlier = sum(report.seconds for report in self._training.history)
        if max(earlier, time.monotonic() - self._began) > limit:
            self._tried(self.checkpoint)
            raise errors.Failure(
                f"the limit of {limit:g} s was reached in epoch {self._training.epoch + 1} of {self._training.epochs}",
                hint="raise limits.max_seconds, or lower epochs; a retry goes on from the last checkpoint",
                code="time_limit",
            )
