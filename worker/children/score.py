"""One attempt at scoring a data set with a published model (`type: predict`): a table with one row an image."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from app.settings import Settings
from ml.data import dataset
from ml.evaluation.masks import Gaussian
from ml.formats import csv_cells
from ml.formats.records import ImageRecord
from ml.serving.predictor import Prediction, Predictor
from ml.training import devices as training_devices
from ml.training import host_cpus
from worker.children import artifacts, localize
from worker.children.job_context import JobContext
from worker.children.job_reporter import JobReporter

HEADER = ["index", "path", "split", "given_label", "predicted_label", "score"]


class ScoredImage(NamedTuple):
    """What the model says of an image; `score` is the probability of the predicted label."""

    image: ImageRecord
    given_label: str | None
    predicted_label: str
    score: float
    gaussian: Gaussian | None  # where the object is; None where the model does not locate it

    @property
    def cells(self) -> list[object]:
        """Its row of the table: the cells that `HEADER` names, and those of the Gaussian if there is one."""
        return [
            self.image.number,
            self.image.path,
            self.image.split,
            self.given_label or "",
            self.predicted_label,
            f"{self.score:.6f}",
            *([] if self.gaussian is None else artifacts.gaussian_cells(self.gaussian)),
        ]


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
    agreements: list[bool] = []  # of images that have a given label

    def rows() -> Iterator[list[object]]:
        for scored in score_images(predictor, labeled.classes, images, predictions, reporter):
            if scored.given_label is not None:
                agreements.append(scored.given_label == scored.predicted_label)
            yield scored.cells

    # Write the table while it is made, and end the job.
    with artifacts.replace_folder(ctx.files, ctx.folder) as folder:
        header = [*HEADER, *(csv_cells.GAUSSIAN_COLUMNS if predictor.localizes else ())]
        artifacts.write_table(folder / "predictions.csv", header, rows())
    reporter.succeed(
        {
            "images": len(images),
            "agreement_with_given_labels": sum(agreements) / len(agreements) if agreements else None,
            "images_per_second": len(images) / max(1e-9, time.monotonic() - started),
        }
    )


def score_images(
    predictor: Predictor,
    classes: Sequence[str],
    images: Sequence[ImageRecord],
    predictions: Iterator[Prediction],
    reporter: JobReporter,
) -> Iterator[ScoredImage]:
    """What the model says of each image, in their order.

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
        yield ScoredImage(
            image,
            given_label=None if image.given is None else classes[image.given],
            predicted_label=predictor.classes[best],
            score=float(prediction.probabilities[best]),
            gaussian=prediction.on(predictor.geometry(image.width, image.height)),
        )


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
