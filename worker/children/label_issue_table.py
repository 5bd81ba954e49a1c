"""Writes the ranking of a training's labels as a table: one row for every training image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app import csv_cells
from ml.data.decoding import Geometry
from ml.evaluation.masks import Gaussian
from ml.evaluation.ranking import LabelIssues
from ml.formats.records import ImageRecord
from ml.training.trainer import Trainer
from worker.children import artifacts

HEADER = ["index", "path", "split", "given_label", "predicted_label", "label_score", "is_label_issue"]


def write(
    path: Path,
    trainer: Trainer,
    issues: LabelIssues,
    images: Sequence[ImageRecord],
    gaussians: Sequence[Gaussian] | None,
) -> None:
    """Write the table.

    Args:
        path: The CSV file.
        trainer: Whose labels, of N images, were ranked.
        issues: Their ranking.
        images: The N images, as the index of the data set has them.
        gaussians: Where the object of each image is, in pixels of the original; None where it is not known.
    """
    columns = zip(
        images,
        trainer.labels.tolist(),
        issues.predicted_label.tolist(),
        issues.label_score.tolist(),
        issues.is_label_issue.tolist(),
        strict=True,
    )
    rows = [
        [
            image.number,
            image.path,
            image.split,
            trainer.classes[given_label],
            trainer.classes[predicted],
            f"{score:.6f}",
            bool(flagged),
            *([] if gaussians is None else artifacts.gaussian_cells(gaussians[number])),
        ]
        for number, (image, given_label, predicted, score, flagged) in enumerate(columns)
    ]
    artifacts.write_table(path, [*HEADER, *(() if gaussians is None else csv_cells.GAUSSIAN_COLUMNS)], rows)


def cached_gaussians(trainer: Trainer, images: Sequence[ImageRecord]) -> list[Gaussian] | None:
    """Where a frozen backbone has located the object of each training image, in pixels of the original."""
    located = trainer.inputs.gaussians
    if located is None:
        return None
    spec = trainer.spec
    return [
        Gaussian.from_square(x, y, sigma, Geometry(image.width, image.height, spec.image_size, spec.resize))
        for image, (x, y, sigma) in zip(images, located.tolist(), strict=True)
    ]
