"""The figures of a finished training as numbers: everything a plot shows, as JSON.

It puts the measurements of this package together and bounds what they cost. It takes the labels to judge by and the
rows known to be wrong from whoever knows them; where nobody does, the given labels and the ranking's issues stand in,
and it says so. Backgrounds are what lies outside the paper's central square, for every method the same; what its own
mask says of a method that has one stands beside.

Shapes: `N` training images, `T` pictures judged, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.blocks import localization
from ml.data import image_store
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import attention
from ml.evaluation.ranking import LabelIssues
from ml.reports import backgrounds, label_figures
from ml.reports.batch_runner import BatchRunner
from ml.training import events
from ml.training.spec import seed_for
from ml.training.trainer import Trainer

FEWEST, MOST = 64, 2000  # images looked at
SECONDS = 10.0  # about what the figures may take, by the speed of the training itself
PASSES = 4  # training steps each image's looks cost: a dozen at most, of a third of a step each
PICTURES = 12  # shown with Grad-CAM
LARGEST_MATRIX = 200  # classes; beyond, matrices are left out
IMAGE_BYTES = 1 << 27  # of normalised images held at once


class ReportData(NamedTuple):
    """Everything the figures show."""

    numbers: dict[str, Any]  # JSON without NaN; what cannot be known is null
    pictures: NDArray[np.uint8]  # (P, S, S, 3): those of `numbers["attention"]`


@dataclass(frozen=True)
class Judged:
    """Pictures and the labels to judge their answers by."""

    name: Literal["test", "held_out"]
    pictures: Tensor  # uint8 (T, S, S, 3)
    labels: Tensor  # int64 (T,)
    noisy: bool = False  # whether these labels are given ones, wrong ones among them
    rows: Tensor | None = None  # int64 (T,): the pictures' rows in the part they are of; None: their order


def judged(training: Trainer, images: LabeledImages, truth: Truth, clean: Tensor | None = None) -> Judged | None:
    """The test set if there is one, else the images held out; None without either.

    Held-out images are judged by `clean` int64 (N,), -1 where unknown; by given labels where nothing of them is known.
    """
    if truth.test_images is not None and truth.test_labels is not None and len(truth.test_labels):
        return Judged("test", truth.test_images, truth.test_labels)
    rows = training.held_out.cpu()
    known = rows if clean is None else rows[clean[rows] >= 0]
    if clean is not None and len(known):
        return Judged("held_out", images.images[known], clean[known], rows=known)
    if not len(rows):
        return None
    return Judged("held_out", images.images[rows], training.labels.cpu()[rows], noisy=True, rows=rows)


def find(
    training: Trainer,
    images: LabeledImages,
    shown: Judged | None,
    *,
    wrong: NDArray[np.int8] | None = None,
    issues: LabelIssues | None = None,
    going_on: Callable[[], None] = lambda: None,
) -> ReportData:
    """All figures.

    `wrong` (N,): 1 for a wrong given label, 0 for a right one, -1 where unknown. `going_on` is called every batch.
    """
    viewer = BatchRunner(training.method, training.mean, training.std, training.device, going_on)
    most = affordable(training)
    small = len(training.classes) <= LARGEST_MATRIX
    numbers: dict[str, Any] = {
        "classes": list(training.classes),
        "loss_histogram": loss_histogram(viewer, training, images, wrong, issues, most),
        "transition": issues.transition.tolist() if issues is not None and small else None,
        "noise_rate": None if issues is None else issues.noise_rate,
    }
    if shown is None:
        return ReportData(numbers, images.images[:0].numpy())
    rows = image_store.evenly(len(shown.labels), most)
    numbers |= _of_answers(viewer, shown, rows, training, matrix=small)
    attended = rows[image_store.evenly(len(rows), PICTURES)] if numbers["attention"] else rows[:0]
    return ReportData(numbers, shown.pictures[attended].cpu().numpy())


def affordable(training: Trainer) -> int:
    """How many images to look at: as many as take `SECONDS`, by the speed of the training."""
    speed = events.speed(training.history) or FEWEST
    room = IMAGE_BYTES // (12 * training.spec.image_size**2)
    return min(max(FEWEST, int(SECONDS * speed / PASSES)), room, MOST)


def loss_histogram(
    viewer: BatchRunner,
    training: Trainer,
    images: LabeledImages,
    wrong: NDArray[np.int8] | None,
    issues: LabelIssues | None,
    most: int,
) -> dict[str, Any] | None:
    """Fig. 1c, of evenly spread images that were trained on; None where nothing tells wrong labels from right ones."""
    trained = np.ones(len(training.labels), np.bool_)
    trained[training.held_out.cpu().numpy()] = False
    if wrong is not None:
        known, bad, origin = trained & (wrong >= 0), torch.from_numpy(wrong > 0), "truth"
    elif issues is not None:
        known, bad, origin = trained, torch.from_numpy(issues.is_label_issue), "ranking"
    else:
        return None
    rows = torch.from_numpy(np.flatnonzero(known))
    if not len(rows):
        return None
    rows = rows[image_store.evenly(len(rows), most)]
    losses = viewer.losses(viewer.images(images.images[rows]), training.labels[rows])
    return {"wrong_by": origin, **label_figures.loss_histogram(losses, bad[rows])}


def _of_answers(viewer: BatchRunner, shown: Judged, rows: Tensor, training: Trainer, *, matrix: bool) -> dict[str, Any]:
    """What is measured on these rows of the pictures that were not trained on."""
    labels = shown.labels[rows].cpu()
    images = viewer.images(shown.pictures[rows])
    probabilities = viewer.probabilities(images)
    places = rows if shown.rows is None else shown.rows[rows]

    def outside(masks: Tensor) -> dict[str, Any]:
        """By one mask; every mask is seen with the same partners."""
        generator = torch.Generator().manual_seed(seed_for(training.spec.seed, "figures"))
        return {
            "correlation": backgrounds.correlations(viewer, images, masks),
            "backgrounds": backgrounds.reliance(viewer, images, masks, labels, len(training.classes), generator),
        }

    return {
        "of": shown.name,
        "labels": "given" if shown.noisy else "true",
        "images": len(rows),
        "rows": places.tolist(),
        "confusion": label_figures.confusion(probabilities, labels) if matrix else None,
        "reliability": label_figures.reliability(probabilities, labels),
        **outside(localization.central_mask(images[:1]).expand(len(images), -1, -1, -1)),
        "own_mask": outside(viewer.masks(images)) if viewer.locates(images) else None,
        "attention": attention_of(viewer, images, places, labels, probabilities),
    }


def attention_of(
    viewer: BatchRunner, images: Tensor, rows: Tensor, labels: Tensor, probabilities: Tensor
) -> list[dict[str, Any]] | None:
    """Fig. 1b: Grad-CAM of some images for their answers; None for networks without feature maps."""
    chosen = image_store.evenly(len(labels), PICTURES)
    maps = attention.grad_cam(viewer.method, images[chosen].to(viewer.device))
    if maps is None:
        return None
    return [
        {
            "row": int(rows[i]),
            "label": int(labels[i]),
            "answer": int(probabilities[i].argmax()),
            "grad_cam": [[round(value, 3) for value in line] for line in lines],
        }
        for i, lines in zip(chosen.tolist(), maps[:, 0].cpu().tolist(), strict=True)
    ]


def metrics(numbers: dict[str, Any]) -> dict[str, float | None]:
    """The few numbers that stand among a job's metrics; None where backgrounds could not be swapped.

    Accuracy by given labels is named noisy.
    """
    of = numbers.get("backgrounds") or {}
    noisy = numbers.get("labels") == "given"
    return {
        "background_reliance": of.get("background_reliance"),
        "swapped_accuracy": None if noisy else of.get("swapped_accuracy"),
        "noisy_swapped_accuracy": of.get("swapped_accuracy") if noisy else None,
    }
