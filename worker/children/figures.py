"""The figures of a finished training: numbers for the job's metrics, files for its artifacts.

Nothing that goes wrong with a figure fails a job: its model is trained. Orders to stop are obeyed, and a full disk is
waited for as everywhere.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from app.errors import DatabaseUnavailable
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues
from ml.formats import dataset_index
from ml.reports import plots, report_data
from ml.reports.report_data import ReportData
from ml.training.trainer import Trainer
from worker.children import failures
from worker.children.job_reporter import FencedOff, Interrupted, JobContext

log = logging.getLogger(__name__)

NUMBERS = "figures.json"


def find(
    given: JobContext,
    training: Trainer,
    images: LabeledImages,
    truth: Truth,
    issues: LabelIssues | None,
    clean: Tensor | None,
) -> ReportData | None:
    """What there is to show; `clean` int64 (N,) are the labels that tell which given ones are wrong, where known."""
    epochs = training.epochs
    given.desk.progress({"phase": "figures", "epoch": epochs, "epochs": epochs, "fraction": 1.0})
    try:
        found = report_data.find(
            training,
            images,
            report_data.judged(training, images, truth, clean),
            wrong=measure.wrong_labels(training.labels, clean),
            issues=issues,
            going_on=given.still_wanted,
        )
        found.numbers["pictures"] = _named(given, found.numbers)
    except (Interrupted, FencedOff, DatabaseUnavailable):
        raise
    except Exception:  # whatever a measurement stumbles over
        log.exception("no figures")
        given.desk.log("warning", "The figures could not be made; everything else is there.")
        return None
    return found


def _named(given: JobContext, numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Which pictures of the data set were judged, in the order of everything told of each."""
    if "of" not in numbers:
        return []
    pictures = dataset_index.read_images(given.dataset, split="test" if numbers["of"] == "test" else "train")
    return [{"index": pictures[row].number, "path": pictures[row].path} for row in numbers["rows"]]


def write(given: JobContext, found: ReportData | None, folder: Path) -> None:
    """figures.json, and each figure as PNG and SVG."""
    if found is None:
        return
    try:
        (folder / NUMBERS).write_text(json.dumps(found.numbers, allow_nan=False), encoding="utf-8")
        plots.draw(found.numbers, found.pictures, folder)
    except Exception as error:
        if failures.disk_full(error):
            raise
        log.exception("not all figures drawn")
        given.desk.log("warning", "Not all figures could be drawn; everything else is there.")
