"""One attempt at scoring a data set with a published model (`type: predict`): a table with one row a picture."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections.abc import Iterator, Sequence

import torch

from app.jobs import attempt
from ml.data import dataset
from ml.formats import dataset_index
from ml.formats.records import ImageRecord
from ml.serving.predictor import Prediction, Predictor
from worker.children import artifacts, localize
from worker.children.job_reporter import JobContext

HEADER = ["index", "path", "split", "given_label", "predicted_label", "score"]


def run(given: JobContext) -> None:
    """Score every picture asked for and succeed. Raises Interrupted when told to stop, and ml.errors.Failure.

    The job's spec is {"model_id", "split"}; `split` is train, test or all.
    """
    spec, threads = given.job.spec, given.settings.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    predictor = Predictor.load(given.files.model(uuid.UUID(spec["model_id"])), given.devices[0])
    splits = ("train", "test") if spec.get("split", "all") == "all" else (str(spec["split"]),)

    def preparing(done: int, total: int) -> None:
        show(given, f"preparing images, {done} of {total}", 0.0, None)

    images, truth = dataset.load(
        given.dataset,
        image_size=predictor.image_size,
        resize=predictor.manifest.spec.resize,
        threads=threads,
        progress=preparing,
    )
    squares = {"train": images.images, "test": truth.test_images}
    pictures = [image for image in dataset_index.read_images(given.dataset) if image.split in splits]
    found = itertools.chain.from_iterable(
        localize.answers(predictor, shown, given.still_wanted) for s in splits if (shown := squares[s]) is not None
    )
    started = time.monotonic()
    rows = list(tell(given, predictor, images.classes, pictures, found))
    write(given, rows, localizes=predictor.localizes)
    labelled = [row for row in rows if row[3] != ""]
    metrics = {
        "images": len(rows),
        "agreement_with_given_labels": sum(r[3] == r[4] for r in labelled) / len(labelled) if labelled else None,
        "images_per_second": len(rows) / max(1e-9, time.monotonic() - started),
    }
    given.desk.settle(lambda session: attempt.succeed(session, given.job.id, given.fence, metrics=metrics))


def tell(
    given: JobContext,
    predictor: Predictor,
    known: Sequence[str],
    pictures: Sequence[ImageRecord],
    found: Iterator[Prediction],
) -> Iterator[list[object]]:
    """The row of each picture; `known` are the data set's own classes, which may differ from the model's."""
    started = time.monotonic()
    for number, (picture, answer) in enumerate(zip(pictures, found, strict=True)):
        if number % localize.BATCH == 0:
            speed = number / (time.monotonic() - started) if number else None
            show(given, "predict", number / len(pictures), speed)
        best = int(answer.probabilities.argmax())
        label = "" if picture.given is None else known[picture.given]
        gaussian = answer.on(predictor.geometry(picture.width, picture.height))
        yield [
            picture.number,
            picture.path,
            picture.split,
            label,
            predictor.classes[best],
            f"{answer.probabilities[best]:.6f}",
            *([] if gaussian is None else artifacts.place(gaussian)),
        ]


def write(given: JobContext, rows: Sequence[Sequence[object]], *, localizes: bool) -> None:
    with artifacts.complete(given.folder) as folder:
        artifacts.table(folder / "predictions.csv", [*HEADER, *(artifacts.GAUSSIAN if localizes else ())], rows)


def show(given: JobContext, phase: str, fraction: float, speed: float | None) -> None:
    given.desk.progress(
        {
            "phase": phase,
            "epoch": 0,
            "epochs": 0,
            "fraction": round(fraction, 4),
            "images_per_second": None if speed is None else round(speed, 1),
        }
    )
    given.still_wanted()
