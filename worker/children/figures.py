"""The figures of a finished training: numbers for the job's metrics, files for its artifacts.

A figure that fails does not fail the job: its model is trained. Commands to stop and a full disk are handled as
everywhere else in a job.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from app.errors import DatabaseUnavailable
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues
from ml.formats.records import ImageRecord, Split
from ml.reports import plots, report_data
from ml.reports.report_data import ReportData
from ml.training.trainer import Trainer
from worker.children import failures
from worker.children.image_results import Outputs
from worker.children.job_reporter import FencedOff, Interrupted, JobReporter

log = logging.getLogger(__name__)

NUMBERS = "figures.json"


def compute(
    trainer: Trainer,
    images: LabeledImages,
    truth: Truth,
    issues: LabelIssues | None,
    clean: Tensor | None,
    read_images: Callable[[Split], list[ImageRecord]],
    reporter: JobReporter,
    outputs: Outputs,
) -> ReportData | None:
    """Measure what the figures show.

    Args:
        trainer: The finished training.
        images: The training images with their given labels.
        truth: The test set, where there is one.
        issues: The ranking of label issues, where the method has one.
        clean: int64 (N,) labels that tell which given labels are wrong, -1 where unknown; None when none is known.
        read_images: A function that returns the images of a split, for their paths.
        reporter: Takes the progress, and raises on a command to stop.
        outputs: What the model says of all images.

    Returns:
        Numbers and images of the figures; None when a measurement failed, with the error in the logs.
    """
    epochs = trainer.epochs
    reporter.report_progress({"phase": "figures", "epoch": epochs, "epochs": epochs, "fraction": 1.0})
    try:
        judged = report_data.choose_judged(trainer, images, truth, clean)
        report = report_data.collect(
            trainer,
            images,
            judged,
            probabilities=None if judged is None else outputs.of(judged),
            wrong=measure.wrong_labels(trainer.labels, clean),
            issues=issues,
            on_batch=reporter.check_cancelled,
        )
        report.numbers["pictures"] = _image_paths(read_images, report.numbers)
    except (Interrupted, FencedOff, DatabaseUnavailable):
        raise
    except Exception:  # of any measurement
        log.exception("no figures")
        reporter.log("warning", "The figures could not be computed; everything else is complete.")
        return None
    return report


def _image_paths(read_images: Callable[[Split], list[ImageRecord]], numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Index and path of each evaluated image, in the order of the per-image numbers."""
    if "of" not in numbers:
        return []
    images = read_images("test" if numbers["of"] == "test" else "train")
    return [{"index": images[row].number, "path": images[row].path} for row in numbers["rows"]]


def write(report: ReportData | None, folder: Path, reporter: JobReporter) -> None:
    """Write figures.json, and each figure as PNG and SVG, into a folder; nothing without a report.

    Raises:
        OSError: The disk is full.
    """
    if report is None:
        return
    try:
        (folder / NUMBERS).write_text(json.dumps(report.numbers, allow_nan=False), encoding="utf-8")
        plots.draw(report.numbers, report.pictures, folder)
    except Exception as error:
        if failures.is_disk_full(error):
            raise
        log.exception("not all figures drawn")
        reporter.log("warning", "Not all figures could be drawn; everything else is complete.")
