"""One attempt at training: load the data set, resume, train with checkpoints, publish.

`ml` trains and yields events, and knows neither database nor cancellation. This module decides what an event means for
the job.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.settings import Settings
from ml import errors
from ml.data import dataset
from ml.data.dataset import LabeledImages, Truth
from ml.distributed.launch import RankInfo
from ml.distributed.process_group import ProcessGroup
from ml.evaluation.ranking import LabelIssues
from ml.training import devices as training_devices
from ml.training import host_cpus
from ml.training.events import EpochReport, Step
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from worker.children import checkpointing, first_answer, publish
from worker.children.checkpointing import Checkpointer
from worker.children.job_context import JobContext
from worker.children.job_reporter import Interrupted, JobReporter
from worker.children.progress_meter import ProgressMeter

log = logging.getLogger(__name__)


def run(
    ctx: JobContext, settings: Settings, devices: Sequence[str], reporter: JobReporter, rank: RankInfo | None = None
) -> None:
    """Train to the end and publish.

    Args:
        ctx: The attempt.
        settings: Threads, checkpoint periods and tolerances.
        devices: One for each process of the training.
        reporter: Where the attempt reports to.
        rank: This process as the first of several; None when it trains alone.

    Raises:
        Interrupted: The supervisor or the user stopped the attempt.
        Failure: The training failed (`ml.errors`).
    """
    started = time.monotonic()
    spec = TrainingSpec.model_validate(ctx.job.spec)
    threads = threads_per_process(settings, devices)
    reporter.set_hardware(training_devices.describe(devices, threads))
    images, truth = load(ctx, spec, threads, reporter)

    def build_trainer(of: TrainingSpec, group: ProcessGroup | None) -> Trainer:
        return build(of, images, truth, settings, ctx, devices, group, reporter)

    # The first answer, within seconds, if the spec has one.
    first: first_answer.Stage | None = None
    if spec.first_answer:
        first = first_answer.train(build_trainer(first_answer.probe_spec(spec), None), reporter, started)
        first_answer.report(ctx, reporter, first)

    # Join the other ranks, then resume from a checkpoint or start from the beginning; they do the same as this one.
    group = None if rank is None else join(rank, devices, settings)
    trainer = build_trainer(spec, group)
    if note := training_devices.precision_note(spec.precision, trainer.device):
        reporter.log("warning", note)
    if trainer.device.type == "cuda" and settings.cuda_graphs and has_failed_before(ctx):
        reporter.log("warning", "Steps are taken one by one, since an attempt before ended without a checkpoint.")
    checkpointer = Checkpointer(ctx, settings, reporter, trainer)
    resumed: Path | None = None
    try:
        resumed = checkpointer.resume()
    except errors.CheckpointInvalid as error:  # the trainer may be half restored
        log.warning("not resumed: %s", error, exc_info=error.__cause__)
        reporter.log("warning", f"The training starts again: {error.detail}.")
        trainer = build_trainer(spec, group)
        checkpointer = Checkpointer(ctx, settings, reporter, trainer)
    if group is not None:
        group.broadcast_object(None if resumed is None else str(resumed))

    facts = report_images(reporter, trainer, first)

    # Train. After that the other ranks leave: waiting for disk space may take longer than they would wait for this one.
    with contextlib.closing(checkpointer):
        train(trainer, checkpointer, reporter, settings, max_seconds=ctx.job.limits.get("max_seconds"))
        if group is not None:
            group.leave()
        checkpointer.write_last()

    # Publish the training, or the first answer where that is better.
    issues: LabelIssues | None = None
    if first is not None:
        trained = first_answer.Stage("training", trainer, time.monotonic() - started)
        chosen, reason = first_answer.choose(first, trained)
        trainer = chosen.trainer
        facts |= {"stages": [first.summary, trained.summary], "published": chosen.name, "published_reason": reason}
        issues = first_answer.ranking(first, trained)
    publication = publish.Publication(ctx, reporter, trainer, images, truth, facts, issues)
    checkpointer.when_there_is_space(publication.write)
    reporter.finish(publication.commit)
    publication.remove_checkpoints()


def train(
    trainer: Trainer,
    checkpointer: Checkpointer,
    reporter: JobReporter,
    settings: Settings,
    *,
    max_seconds: float | None = None,
) -> None:
    """Iterate over a training to its end, reporting and writing checkpoints.

    Args:
        trainer: The training, new or resumed.
        checkpointer: Writes the checkpoints.
        reporter: Where epochs and progress are reported, and where a command to stop comes from.
        settings: Periods of the checkpoints.
        max_seconds: The job's time limit; None is no limit.

    Raises:
        Interrupted: The attempt has to stop; when it is drained, a checkpoint has been written.
        Failure: The time limit was reached (code `time_limit`), or what `ml` raises.
    """
    started = time.monotonic()
    meter = ProgressMeter(trainer)
    notices = trainer.step_runner.notices
    try:
        for number, event in enumerate(trainer):
            if number == 0:
                log.info("first step")
            reporter.beat()
            while notices:
                reporter.log("warning", notices.pop(0))

            # Checkpoints: after each epoch unless epochs are short, within an epoch only when it is long.
            if isinstance(event, EpochReport):
                reporter.record_epoch(event.to_json())
                checkpointer.write_if_due(settings.checkpoint_min_s)
            else:
                meter.add(event)
                checkpointer.write_if_due(settings.checkpoint_s)

            # About once a second: write the reports, and stop on a command or when the time is up.
            if reporter.is_due():
                if isinstance(event, Step):
                    reporter.report_progress(meter.progress(event))
                reporter.sync()
                if max_seconds is not None:
                    _check_time_limit(trainer, checkpointer, max_seconds, time.monotonic() - started)
    except Interrupted as stop:
        if stop.command == "drain":
            checkpointer.write()
        raise


def report_images(reporter: JobReporter, trainer: Trainer, first: first_answer.Stage | None) -> dict[str, Any]:
    """Say in the job's log and in its metrics that the images do not fit into memory, if they do not.

    Args:
        reporter: Where the attempt reports to.
        trainer: The training, before its first step.
        first: What the metrics have already; None where there was no first answer.

    Returns:
        What the job's last metrics say of it.
    """
    facts = {"images_streamed": trainer.inputs.streamed}
    if (choice := trainer.inputs.choice) is not None and choice.streamed:
        reporter.log("info", choice.explain())
        reporter.record_metrics(facts if first is None else {**facts, "stages": [first.summary]})
    return facts


def threads_per_process(settings: Settings, devices: Sequence[str]) -> int:
    """CPU threads of each process of an attempt, of which there is one for each device."""
    return max(1, (settings.threads or host_cpus.count()) // len(devices))


def join(rank: RankInfo, devices: Sequence[str], settings: Settings) -> ProcessGroup:
    """Join the process group of all ranks, which fails when a rank does not respond for `stall_s`.

    Args:
        rank: This process among the ranks.
        devices: One for each rank.
        settings: For `stall_s`.
    """
    device = training_devices.resolve(devices[rank.rank])
    return ProcessGroup.join(rank.rendezvous, rank.rank, rank.size, device, timeout_s=settings.stall_s)


def build(
    spec: TrainingSpec,
    images: LabeledImages,
    truth: Truth,
    settings: Settings,
    ctx: JobContext,
    devices: Sequence[str],
    group: ProcessGroup | None,
    reporter: JobReporter | None = None,
) -> Trainer:
    """The training of this process, on its own device of `devices`; without a `group`, on the first.

    Args:
        spec: What is trained.
        images: The training images with their given labels.
        truth: The test set and clean labels, where known.
        settings: Threads and recorded steps.
        ctx: The attempt, for the folders of pretrained weights and of the data set.
        devices: One for each process of the training.
        group: The process group of the ranks; None when this process trains alone.
        reporter: Takes the progress while features are computed, and raises on a command to stop; of the first rank.
    """

    def progress(done: int, total: int) -> None:
        if reporter is None:
            return
        reporter.report_progress({"phase": f"computing features, {done} of {total}", **before_the_first(spec)})
        reporter.check_cancelled()

    device = devices[0 if group is None else group.rank]
    training_devices.limit_memory(device, settings.gpu_memory_fraction)
    return Trainer.build(
        spec,
        images,
        truth=truth,
        device=device,
        threads=threads_per_process(settings, devices),
        weights=ctx.files.fetch_weights(spec.network if spec.pretrained else None),
        group=group,
        cuda_graphs=settings.cuda_graphs and not has_failed_before(ctx),
        cache=ctx.dataset_folder,
        progress=progress,
    )


def has_failed_before(ctx: JobContext) -> bool:
    """Whether attempts before this one left no checkpoint, or the last one none that was new.

    Recording a step is what may break a GPU's driver, and it does so in the first steps of a training or a phase.
    """
    if ctx.job.attempts_without_progress > 0:
        return True
    return ctx.fence > 1 and not checkpointing.any_written(ctx.files, ctx.job.id)


def before_the_first(spec: TrainingSpec) -> dict[str, Any]:
    """The fields of a job's progress before its first epoch."""
    return {"epoch": 0, "epochs": spec.epochs, "fraction": 0.0}


def load(ctx: JobContext, spec: TrainingSpec, threads: int, reporter: JobReporter) -> tuple[LabeledImages, Truth]:
    """Load the job's data set at the spec's image size; preparing a size the first time takes long, and can be stopped.

    Raises:
        UnusableData: The data set's files are missing (code `dataset_corrupt`), or cannot be trained on.
    """
    progress_fields = before_the_first(spec)

    def progress(done: int, total: int) -> None:
        reporter.report_progress({"phase": f"preparing images, {done} of {total}", **progress_fields})
        reporter.check_cancelled()

    def fetching(done: int, total: int) -> None:
        phase = f"fetching the data set, {done >> 20} of {total >> 20} MiB"
        reporter.report_progress({"phase": phase, **progress_fields})
        reporter.check_cancelled()

    reporter.report_progress({"phase": "loading", **progress_fields})
    ctx.fetch_dataset(fetching)
    try:
        return dataset.load(
            ctx.dataset_folder,
            version=ctx.job.label_version,
            image_size=spec.image_size,
            resize=spec.resize,
            threads=threads,
            progress=progress,
        )
    except FileNotFoundError as error:
        raise errors.UnusableData("the data set's files are missing", code="dataset_corrupt") from error


def _check_time_limit(trainer: Trainer, checkpointer: Checkpointer, limit: float, elapsed: float) -> None:
    """The limit counts seconds of training over all attempts, and not the waiting between them."""
    trained = sum(report.seconds for report in trainer.history)
    if max(trained, elapsed) > limit:
        checkpointer.try_writing(checkpointer.write)
        raise errors.Failure(
            f"the limit of {limit:g} s was reached in epoch {trainer.epoch + 1} of {trainer.epochs}",
            hint="raise limits.max_seconds, or lower epochs; a retry goes on from the last checkpoint",
            code="time_limit",
        )
