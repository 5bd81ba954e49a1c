"""The figures of a finished training as numbers: everything a plot shows, as JSON.

It puts the measurements of this package together and bounds what they cost. It takes the labels to judge by and the
rows known to be wrong from whoever knows them; where nobody does, the ranking's issues stand in, and it says so.

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

from ml.blocks import attention
from ml.data import LabeledImages
from ml.figures import answers, backgrounds
from ml.figures.viewing import Viewer, spread
from ml.ranking import LabelIssues
from ml.spec import seed_for
from ml.training import Training

FEWEST, MOST = 64, 2000  # images looked at
SECONDS = 10.0  # about what the figures may take, by the speed of the training itself
PASSES = 7 / 3  # looks at each image, in training steps: a look costs a third of a step
PICTURES = 12  # shown with Grad-CAM
LARGEST_MATRIX = 200  # classes; beyond, matrices are left out
IMAGE_BYTES = 1 << 28  # of normalised images held at once


class Findings(NamedTuple):
    """Everything the figures show."""

    numbers: dict[str, Any]  # JSON without NaN; what cannot be known is null
    pictures: NDArray[np.uint8]  # (P, S, S, 3): those of `numbers["attention"]`


@dataclass(frozen=True)
class Judged:
    """Pictures and the labels to judge their answers by."""

    name: Literal["test", "held_out"]
    pictures: Tensor  # uint8 (T, S, S, 3)
    labels: Tensor  # int64 (T,); of the test set the true ones where known, of held-out images the given ones
    masks: Tensor | None = None  # exact ones (T, 1, S, S) in [0, 1], where the caller has them


def judged(training: Training, images: LabeledImages, test: tuple[Tensor, Tensor] | None) -> Judged | None:
    """The test set's pictures and labels if there is one, else the images held out; None without either."""
    if test is not None and len(test[1]):
        return Judged("test", *test)
    rows = training.held_out.cpu()
    return Judged("held_out", images.images[rows], training.labels[rows]) if len(rows) else None


def find(
    training: Training,
    images: LabeledImages,
    shown: Judged | None,
    *,
    wrong: NDArray[np.int8] | None = None,
    issues: LabelIssues | None = None,
    going_on: Callable[[], None] = lambda: None,
) -> Findings:
    """All figures.

    `wrong` (N,): 1 for a wrong given label, 0 for a right one, -1 where unknown. `going_on` is called every batch.
    """
    viewer = Viewer(training.method, training.mean, training.std, training.device, going_on)
    most = affordable(training)
    small = len(training.classes) <= LARGEST_MATRIX
    numbers: dict[str, Any] = {
        "classes": list(training.classes),
        "loss_histogram": loss_histogram(viewer, training, images, wrong, issues, most),
        "transition": issues.transition.tolist() if issues is not None and small else None,
        "noise_rate": None if issues is None else issues.noise_rate,
    }
    if shown is None:
        return Findings(numbers, images.images[:0].numpy())
    numbers |= _of_answers(viewer, shown, training, most, matrix=small)
    rows = [each["row"] for each in numbers["attention"] or ()]
    return Findings(numbers, shown.pictures[rows].cpu().numpy())


def affordable(training: Training) -> int:
    """How many images to look at: as many as take `SECONDS`, by the median speed of the epochs."""
    speeds = sorted(report.images_per_second for report in training.history)
    speed = speeds[len(speeds) // 2] if speeds else FEWEST
    room = IMAGE_BYTES // (12 * training.spec.image_size**2)
    return min(max(FEWEST, int(SECONDS * speed / PASSES)), room, MOST)


def loss_histogram(
    viewer: Viewer,
    training: Training,
    images: LabeledImages,
    wrong: NDArray[np.int8] | None,
    issues: LabelIssues | None,
    most: int,
) -> dict[str, Any] | None:
    """Fig. 1c, of evenly spread training images; None where nothing tells wrong labels from right ones."""
    if wrong is not None:
        rows, bad, origin = torch.from_numpy(np.flatnonzero(wrong >= 0)), torch.from_numpy(wrong > 0), "truth"
    elif issues is not None:
        rows, bad, origin = torch.arange(len(issues.is_label_issue)), torch.from_numpy(issues.is_label_issue), "ranking"
    else:
        return None
    if not len(rows):
        return None
    rows = rows[spread(len(rows), most)]
    losses = viewer.losses(viewer.images(images.images[rows]), training.labels[rows])
    return {"wrong_by": origin, **answers.loss_histogram(losses, bad[rows])}


def _of_answers(viewer: Viewer, shown: Judged, training: Training, most: int, *, matrix: bool) -> dict[str, Any]:
    """What is measured on pictures that were not trained on."""
    rows = spread(len(shown.labels), most)
    labels = shown.labels[rows].cpu()
    images = viewer.images(shown.pictures[rows])
    probabilities = viewer.probabilities(images)
    generator = torch.Generator().manual_seed(seed_for(training.spec.seed, "figures"))
    masks, origin = viewer.masks(images)
    found: dict[str, Any] = {
        "of": shown.name,
        "images": len(rows),
        "rows": rows.tolist(),
        "mask": origin,
        "confusion": answers.confusion(probabilities, labels) if matrix else None,
        "reliability": answers.reliability(probabilities, labels),
        "correlation": backgrounds.correlations(viewer, images, masks),
        "backgrounds": backgrounds.reliance(viewer, images, masks, labels, len(training.classes), generator),
        "attention": attention_of(viewer, images, rows, labels, probabilities),
    }
    if shown.masks is not None:
        exact = shown.masks[rows].float().cpu()
        found["exact_masks"] = {
            "correlation": backgrounds.correlations(viewer, images, exact),
            "backgrounds": backgrounds.reliance(viewer, images, exact, labels, len(training.classes), generator),
        }
    return found


def attention_of(
    viewer: Viewer, images: Tensor, rows: Tensor, labels: Tensor, probabilities: Tensor
) -> list[dict[str, Any]] | None:
    """Fig. 1b: Grad-CAM of some images for their answers; None for networks without feature maps."""
    chosen = spread(len(labels), PICTURES)
    maps = attention.grad_cam(viewer.method.eval(), images[chosen].to(viewer.device))
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
    """The few numbers that stand among a job's metrics; None where backgrounds could not be swapped."""
    of = numbers.get("backgrounds") or {}
    return {name: of.get(name) for name in ("background_reliance", "swapped_accuracy")}
