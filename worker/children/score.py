"""One attempt at scoring a data set with a published model (`type: predict`): a table with one row an image."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence

import torch

from app.settings import Settings
from ml.data import dataset
from ml.formats import csv_cells
from ml.formats.records import ImageRecord
from ml.serving.predictor import Prediction, Predictor
from ml.training import devices as training_devices
from ml.training import host_cpus
from worker.children import artifacts, localize
from worker.children.job_context import JobContext
from worker.children.job_reporter import JobReporter

HEADER = ["index", "path", "split", "given_label", "predicted_label", "score"]


def run(ctx: JobContext, settings: Settings, devices: Sequence[str], reporter: JobReporter) -> None:
    """Predict every requested image, and succeed.

    Args:
        ctx: The attempt. The job's spec is {"model_id", "split"}; `split` is train, test or all.
        settings: Threads.
        devices: The first one is used.
        reporter: Where the attempt reports to.

    Raises:
        Interrupted: The supervisor or the user stopped the attempt.
        Failure: The model or the data set cannot be used (`ml.errors`).
    """
    # Load the model, and the images at its size.
    spec, threads = ctx.job.spec, settings.threads or host_cpus.count()
    torch.set_num_threads(threads)
    training_devices.limit_memory(devices[0], settings.gpu_memory_fraction)
    reporter.set_hardware(training_devices.describe(devices[:1], threads))
    ctx.fetch_dataset(
        lambda done, total: report(reporter, f"fetching images, {done >> 20} of {total >> 20} MiB", 0.0, None)
    )
    predictor = Predictor.load(ctx.fetch_model(uuid.UUID(spec["model_id"])), devices[0])
    splits = ("train", "test") if spec.get("split", "all") == "all" else (str(spec["split"]),)

    def report_preparing(done: int, total: int) -> None:
        report(reporter, f"preparing images, {done} of {total}", 0.0, None)

    labeled, truth = dataset.load(
        ctx.dataset_folder,
        version=ctx.job.label_version,
        image_size=predictor.image_size,
        resize=predictor.manifest.spec.resize,
        threads=threads,
        progress=report_preparing,
    )
    squares_by_split = {"train": labeled.images, "test": truth.test_images}
    images = [image for image in ctx.read_images() if image.split in splits]

    # Predict.
    predictions = itertools.chain.from_iterable(
        localize.predict(predictor, squares, reporter.check_cancelled)
        for split in splits
        if (squares := squares_by_split[split]) is not None
    )
    started = time.monotonic()
    labelled = agreeing = 0

    def rows() -> Iterator[list[object]]:
        nonlocal labelled, agreeing
        for row in table_rows(predictor, labeled.classes, images, predictions, reporter):
            labelled += row[3] != ""
            agreeing += row[3] != "" and row[3] == row[4]
            yield row

    # Write the table while it is made, and end the job.
    with artifacts.replace_folder(ctx.files, ctx.folder) as folder:
        header = [*HEADER, *(csv_cells.GAUSSIAN_COLUMNS if predictor.localizes else ())]
        artifacts.write_table(folder / "predictions.csv", header, rows())
    reporter.succeed(
        {
            "images": len(images),
            "agreement_with_given_labels": agreeing / labelled if labelled else None,
            "images_per_second": len(images) / max(1e-9, time.monotonic() - started),
        }
    )


def table_rows(
    predictor: Predictor,
    classes: Sequence[str],
    images: Sequence[ImageRecord],
    predictions: Iterator[Prediction],
    reporter: JobReporter,
) -> Iterator[list[object]]:
    """The row of each image in the table, in order: the cells that `HEADER` names, and those of the Gaussian if any.

    Args:
        predictor: The model; its classes name the predicted labels.
        classes: The data set's classes, which name the given labels and may differ from the model's.
        images: The data set's entries.
        predictions: One an image.
        reporter: Takes the progress, and raises on a command to stop.
    """
    started = time.monotonic()
    for number, (image, prediction) in enumerate(zip(images, predictions, strict=True)):
        if number % localize.BATCH == 0:
            speed = number / (time.monotonic() - started) if number else None
            report(reporter, "predict", number / len(images), speed)
        best = int(prediction.probabilities.argmax())
        gaussian = prediction.on(predictor.geometry(image.width, image.height))
        yield [
            image.number,
            image.path,
            image.split,
            "" if image.given is None else classes[image.given],
            predictor.classes[best],
            f"{prediction.probabilities[best]:.6f}",
            *([] if gaussian is None else artifacts.gaussian_cells(gaussian)),
        ]


def report(reporter: JobReporter, phase: str, fraction: float, speed: float | None) -> None:
    """Report progress (`fraction` in [0, 1], `speed` in images a second), and stop on a command."""
    reporter.report_progress(
        {
            "phase": phase,
            "epoch": 0,
            "epochs": 0,
            "fraction": round(fraction, 4),
            "images_per_second": None if speed is None else round(speed, 1),
        }
    )
    reporter.check_cancelled()
