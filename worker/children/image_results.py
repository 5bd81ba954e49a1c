"""The results of a finished training for every image: results file, table of label issues, arrays and a map.

The arrays have a row for each image that the job has used, in the order of their numbers: training images first, so
that row i belongs to line i of the table of label issues, which is written in this order too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.datasets import label_issues
from ml.data.dataset import LabeledImages, Truth
from ml.data.decoding import Geometry
from ml.evaluation import image_outputs
from ml.evaluation.image_outputs import ImageOutputs
from ml.evaluation.masks import Gaussian
from ml.evaluation.ranking import LabelIssues, Vector
from ml.features import similar_images
from ml.features.similar_images import SimilarImages
from ml.formats import image_results
from ml.formats.image_query import ImageQuery
from ml.formats.image_results import ImageResult, Neighbour
from ml.formats.records import ImageRecord, ReportLine
from ml.reports.report_data import JudgedImages
from ml.training.trainer import Trainer
from worker.children import artifacts

PRED_PROBS, EMBEDDINGS, MAP = "pred_probs.npy", "embeddings.npy", "map.json"


@dataclass(frozen=True)
class Outputs:
    """The model's outputs for the images of each split, and which images look alike.

    Attributes:
        train: Of the N training images.
        test: Of the T test images; None where there is no test set.
        similar: Among all of them, the N first; None where that was not looked for.
    """

    train: ImageOutputs
    test: ImageOutputs | None
    similar: SimilarImages | None

    @property
    def embeddings(self) -> Tensor:
        """f16 (N + T, D)."""
        return self.train.embeddings if self.test is None else torch.cat([self.train.embeddings, self.test.embeddings])

    def of(self, judged: JudgedImages) -> Tensor:
        """The probabilities of the images judged, f32 (T, C)."""
        if judged.rows is not None:
            return self.train.probabilities[judged.rows]
        assert self.test is not None, "a test set is there"
        return self.test.probabilities


def compute(trainer: Trainer, images: LabeledImages, truth: Truth, check_cancelled: Callable[[], None]) -> Outputs:
    """Run the model over all images.

    Args:
        trainer: The finished training.
        images: Its training images.
        truth: Its test set, where there is one.
        check_cancelled: Called before every batch; may raise.
    """
    train, test = (
        None
        if store is None
        else image_outputs.compute(trainer.method, trainer.evaluator.heads, store, check_cancelled)
        for store in (trainer.inputs.train, trainer.inputs.test)
    )
    assert train is not None, "there are images to train on"
    outputs = Outputs(train, test, None)
    if not similar_images.can_be_found(len(outputs.embeddings)):
        return outputs
    thumbnails = [similar_images.make_thumbnails(images.images)]
    if test is not None and truth.test_images is not None:
        thumbnails.append(similar_images.make_thumbnails(truth.test_images))
    check_cancelled()
    return Outputs(train, test, similar_images.find(outputs.embeddings, torch.cat(thumbnails)))


def write(
    folder: Path,
    trainer: Trainer,
    issues: LabelIssues | None,
    images: Sequence[ImageRecord],
    gaussians: Sequence[Gaussian] | None,
    outputs: Outputs | None = None,
    truth: Truth | None = None,
) -> None:
    """Write the results file; the table of label issues, where labels were ranked; and arrays, with outputs.

    Args:
        folder: Of the artifacts.
        trainer: The training, of N images.
        issues: The ranking of their labels.
        images: The images that the job uses as the index of the data set has them: at least the N training images.
        gaussians: Where the object of each training image is, in pixels of the original; None where it is not known.
        outputs: What the model says of all images; None leaves them to the ranking.
        truth: What test images were measured by; needed with the outputs of a test set.
    """
    rows = list(_results(trainer, issues, images, gaussians, outputs, None if truth is None else truth.test_labels))
    path = folder / image_results.FILE_NAME
    neighbours, report = {}, list[ReportLine]()
    if outputs is not None and outputs.similar is not None:
        neighbours, report = dict(_neighbours(images, outputs.similar)), _report(rows)
    image_results.write(path, trainer.classes, rows, neighbours, report)
    if issues is not None:
        header, table = label_issues.table(path, ImageQuery(split="train"))
        artifacts.write_table(folder / label_issues.FILE_NAME, header, table)
    if outputs is not None and outputs.similar is not None:
        columns = _map(rows, trainer.classes, outputs.similar.points)
        (folder / MAP).write_text(json.dumps(columns, allow_nan=False, separators=(",", ":")), encoding="utf-8")
    if outputs is not None:
        np.save(folder / EMBEDDINGS, outputs.embeddings.numpy(), allow_pickle=False)
        np.save(folder / PRED_PROBS, _pred_probs(issues, outputs), allow_pickle=False)


def cached_gaussians(trainer: Trainer, images: Sequence[ImageRecord]) -> list[Gaussian] | None:
    """Where a frozen backbone has located the object of each training image, in pixels of the original."""
    located = trainer.inputs.gaussians
    if located is None:
        return None
    spec = trainer.spec
    return [
        Gaussian.from_square(x, y, sigma, Geometry(image.width, image.height, spec.image_size, spec.resize))
        for image, (x, y, sigma) in zip(images, located.tolist(), strict=False)
    ]


def _results(
    trainer: Trainer,
    issues: LabelIssues | None,
    images: Sequence[ImageRecord],
    gaussians: Sequence[Gaussian] | None,
    outputs: Outputs | None,
    test_labels: Tensor | None,
) -> Iterator[ImageResult]:
    """One an image; arguments as of `write`, but the labels by which test images were measured, int64 (T,)."""
    labels, tested = trainer.labels.tolist(), [] if test_labels is None else test_labels.tolist()
    held_out = set(trainer.held_out.tolist())
    of_ranking = None if issues is None else _suggestions(issues.class_probs, issues.predicted_label)
    of_model = None if outputs is None else [*_suggestions(outputs.train.probabilities.numpy())]
    if of_model is not None and outputs is not None and outputs.test is not None:
        of_model += _suggestions(outputs.test.probabilities.numpy())
    for row, image in enumerate(images):
        known: dict[str, Any] = {}
        if of_model is not None:
            known |= {"model": of_model[row]["predicted"], **of_model[row]}
        if outputs is not None and outputs.similar is not None:
            known |= _similarity(outputs.similar, images, row)
        trained = row < len(labels)
        if trained and issues is not None and of_ranking is not None:
            known |= of_ranking[row]
            known |= {"label_score": float(issues.label_score[row]), "is_label_issue": bool(issues.is_label_issue[row])}
        if trained and gaussians is not None:
            known |= asdict(gaussians[row])
        label = labels[row] if trained else tested[row - len(labels)]
        yield ImageResult(image.number, image.path, image.split, label, trained and row in held_out, **known)


def _suggestions(probabilities: Vector, best: NDArray[np.int64] | None = None) -> list[dict[str, Any]]:
    """The likeliest classes of each image, as fields of `ImageResult`.

    Args:
        probabilities: (N, C).
        best: (N,), the class that comes first; None takes the likeliest.
    """
    rows = np.arange(len(probabilities))
    raised = probabilities.copy()
    if best is not None:
        raised[rows, best] = 2.0  # above every probability
    order = np.argsort(-raised, axis=1, kind="stable")[:, : image_results.SUGGESTIONS]
    names = (("predicted", "confidence"), ("second", "second_confidence"), ("third", "third_confidence"))
    columns = {}
    for place, (name, confidence) in enumerate(names[: order.shape[1]]):
        columns[name] = order[:, place].tolist()
        columns[confidence] = np.round(probabilities[rows, order[:, place]].astype(np.float64), 6).tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _similarity(similar: SimilarImages, images: Sequence[ImageRecord], row: int) -> dict[str, Any]:
    first = int(similar.duplicate_of[row])
    return {
        "outlier_distance": float(similar.distances[row]),
        "is_outlier": bool(similar.is_outlier[row]),
        "duplicate_set": None if first < 0 else images[first].number,
    }


def _neighbours(images: Sequence[ImageRecord], similar: SimilarImages) -> Iterator[tuple[int, list[Neighbour]]]:
    """The number of each image, and its neighbours."""
    for image, positions, similarities in zip(
        images, similar.neighbours.tolist(), similar.similarities.tolist(), strict=True
    ):
        yield (
            image.number,
            [Neighbour(images[at].number, value) for at, value in zip(positions, similarities, strict=True)],
        )


def _report(rows: Sequence[ImageResult]) -> list[ReportLine]:
    """Lines on near-duplicates and outliers."""
    lines = []
    by_number = {row.image: row for row in rows}
    for row in rows:
        if row.duplicate_set is not None and row.duplicate_set != row.image:
            first = by_number[row.duplicate_set]
            across = first.split != row.split
            code = "near_duplicate_across_splits" if across else "near_duplicate"
            where = f" of the {first.split} split" if across else ""
            differs = "" if first.given_label == row.given_label else ", and has another label"
            lines.append(ReportLine(row.path, code, f"It looks the same as {first.path}{where}{differs}.", "warning"))
        if row.is_outlier:
            detail = f"It is far from all other images: mean distance {row.outlier_distance:.2f} to the nearest."
            lines.append(ReportLine(row.path, "outlier", detail, "warning"))
    return lines


def _map(rows: Sequence[ImageResult], classes: Sequence[str], points: Tensor) -> dict[str, list[Any]]:
    """Columns with a value for each image, and the names of the classes that labels are ids of."""
    x, y = (points[:, axis].double().numpy().round(5).tolist() for axis in (0, 1))
    return {
        "classes": list(classes),
        "index": [row.image for row in rows],
        "x": x,
        "y": y,
        "given_label": [row.given_label for row in rows],
        "predicted_label": [row.predicted for row in rows],
        "is_label_issue": [row.is_label_issue for row in rows],
        "label_score": [None if row.label_score is None else round(row.label_score, 5) for row in rows],
    }


def _pred_probs(issues: LabelIssues | None, outputs: Outputs) -> NDArray[np.float32]:
    """f32 (N + T, C): of training images those that their labels were judged by, of test images the model's."""
    train = outputs.train.probabilities.numpy() if issues is None else issues.pred_probs
    parts = [train] if outputs.test is None else [train, outputs.test.probabilities.numpy()]
    return np.concatenate(parts).astype(np.float32)
