"""The numbers behind a finished training's figures, as JSON: everything that the plots show.

It runs the measurements of this package and bounds their cost. Callers pass the labels to judge by and the labels known
to be wrong. Where nothing is known, the given labels and the ranking's issues take their place, and the numbers name
which it was. The background is what lies outside of the paper's central square, the same for every method; methods
with a localization module are measured by their own masks too.

Shapes: `N` training images, `T` images judged, `C` classes, `S` side.
"""

from __future__ import annotations

import time
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
from ml.data.stored_rows import Rows
from ml.evaluation import attention, image_outputs
from ml.evaluation.ranking import LabelIssues
from ml.reports import backgrounds, label_figures
from ml.reports.batch_runner import BatchRunner
from ml.training.spec import seed_for
from ml.training.trainer import Trainer

FEWEST, MOST = 64, 2000  # images judged
SECONDS = 10.0  # the figures may take about this long
PASSES = 12  # forward passes by which an image is judged, at most
TIMED = 32  # images by which the speed of a pass is measured
ATTENTION_IMAGES = 12  # images with Grad-CAM
LARGEST_MATRIX = 200  # classes; with more, matrices are left out, and `most_confused` says the most of it
IMAGE_BYTES = 1 << 27  # of normalised images held at once


class ReportData(NamedTuple):
    """Everything that the figures show."""

    numbers: dict[str, Any]  # JSON without NaN; null where a value is not known
    pictures: NDArray[np.uint8]  # (P, S, S, 3): the images of `numbers["attention"]`


@dataclass(frozen=True)
class JudgedImages:
    """Images that were not trained on, and the labels to judge their predictions by."""

    name: Literal["test", "held_out"]
    images: Rows  # uint8 (T, S, S, 3), or those of the training set, of which `rows` are judged
    labels: Tensor  # int64 (T,)
    noisy: bool = False  # whether these are given labels, wrong ones among them
    rows: Tensor | None = None  # int64 (T,): positions in the training set; None: the whole test set in its order

    def pictures(self, chosen: Tensor) -> Tensor:
        """Some of the T images, by positions among them int64 (P,): uint8 (P, S, S, 3)."""
        return self.images[chosen if self.rows is None else self.rows[chosen]]


def choose_judged(
    training: Trainer, images: LabeledImages, truth: Truth, clean: Tensor | None = None
) -> JudgedImages | None:
    """The images by which a training is judged: the test set if there is one, otherwise the held-out images.

    Args:
        training: The finished training.
        images: Its training set.
        truth: Its test set and clean labels, where known.
        clean: int64 (N,), -1 where unknown. Held-out images with a clean label are judged by it; if there are none,
            all held-out images are judged by their given labels.

    Returns:
        None if there is neither a test set nor a held-out image.
    """
    if truth.test_images is not None and truth.test_labels is not None and len(truth.test_labels):
        return JudgedImages("test", truth.test_images, truth.test_labels)
    rows = training.held_out.cpu()
    known = rows if clean is None else rows[clean[rows] >= 0]
    if clean is not None and len(known):
        return JudgedImages("held_out", images.images, clean[known], rows=known)
    if not len(rows):
        return None
    return JudgedImages("held_out", images.images, training.labels.cpu()[rows], noisy=True, rows=rows)


def collect(
    training: Trainer,
    images: LabeledImages,
    judged: JudgedImages | None,
    *,
    wrong: NDArray[np.int8] | None = None,
    issues: LabelIssues | None = None,
    probabilities: Tensor | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> ReportData:
    """All numbers of a training's figures.

    Accuracies and confusion are of all images judged; what takes several forward passes an image is of a part of them.

    Args:
        training: The finished training; its method is put into eval mode.
        images: Its training set.
        judged: See `choose_judged`; without it only the figures of training labels are made.
        wrong: int8 (N,), 1 for a wrong given label, 0 for a right one, -1 where unknown; None where nothing is known.
        issues: The ranking of the given labels.
        probabilities: f32 (T, C), what the training predicts for the images judged; None computes them.
        on_batch: Called before every batch; may raise to stop.
    """
    runner = BatchRunner(training.picture_method(), training.mean, training.std, training.device, on_batch)
    limit = affordable_images(runner, images.images)
    few_classes = len(training.classes) <= LARGEST_MATRIX

    # What can be told of training labels alone.
    numbers: dict[str, Any] = {
        "classes": list(training.classes),
        "loss_histogram": loss_histogram(runner, training, images, wrong, issues, limit),
        "transition": issues.transition.tolist() if issues is not None and few_classes else None,
        "noise_rate": None if issues is None else issues.noise_rate,
    }
    if judged is None:
        return ReportData(numbers, images.images[torch.arange(0)].numpy())

    # Predictions for all images that were not trained on, and what a part of them depends on.
    if probabilities is None:
        probabilities = predict(training, judged, on_batch)
    labels = judged.labels.cpu()
    numbers |= {
        "of": judged.name,
        "labels": "given" if judged.noisy else "true",
        "images": len(labels),
        "confusion": label_figures.confusion(probabilities, labels) if few_classes else None,
        "most_confused": label_figures.most_confused(probabilities, labels),
        "reliability": label_figures.reliability(probabilities, labels),
    }
    rows = image_store.evenly(len(labels), limit)
    numbers |= _of_backgrounds(runner, judged, rows, probabilities[rows], training)
    attended = rows[image_store.evenly(len(rows), ATTENTION_IMAGES)] if numbers["attention"] else rows[:0]
    return ReportData(numbers, judged.pictures(attended).cpu().numpy())


def affordable_images(runner: BatchRunner, images: Rows) -> int:
    """How many images are judged: as many as take `SECONDS` by the speed of a forward pass, in [FEWEST, MOST].

    Fewer than FEWEST where images are so large that `IMAGE_BYTES` would be exceeded. The speed of the training says
    nothing where it learns from cached features.

    Args:
        runner: Of the method as it predicts from pictures.
        images: uint8 (N, S, S, 3), of which a few are timed.
    """
    few = runner.normalize(images[torch.arange(min(TIMED, len(images)))])
    runner.probabilities(few)  # a first pass also allocates
    started = time.perf_counter()
    runner.probabilities(few)
    speed = len(few) / (time.perf_counter() - started)
    fitting = IMAGE_BYTES // (12 * images.shape[1] ** 2)  # 3 channels of 4 bytes
    return min(max(FEWEST, int(SECONDS * speed / PASSES)), fitting, MOST)


def loss_histogram(
    runner: BatchRunner,
    training: Trainer,
    images: LabeledImages,
    wrong: NDArray[np.int8] | None,
    issues: LabelIssues | None,
    limit: int,
) -> dict[str, Any] | None:
    """Losses of right and wrong labels that were trained on (Fig. 1c).

    Args:
        runner: Of the training's method.
        training: The finished training.
        images: Its training set.
        wrong: As in `collect`; images where it is -1 are left out.
        issues: Stands in for `wrong` where that is None.
        limit: At most so many images, evenly spread over the set.

    Returns:
        `wrong_by`, "truth" or "ranking", and what `label_figures.loss_histogram` returns; None without `wrong` and
        `issues`.
    """
    usable = np.ones(len(training.labels), np.bool_)
    usable[training.held_out.cpu().numpy()] = False
    if wrong is not None:
        usable, is_wrong, wrong_by = usable & (wrong >= 0), torch.from_numpy(wrong > 0), "truth"
    elif issues is not None:
        is_wrong, wrong_by = torch.from_numpy(issues.is_label_issue), "ranking"
    else:
        return None
    rows = torch.from_numpy(np.flatnonzero(usable))
    if not len(rows):
        return None
    rows = rows[image_store.evenly(len(rows), limit)]
    losses = runner.losses(runner.normalize(images.images[rows]), training.labels[rows])
    return {"wrong_by": wrong_by, **label_figures.loss_histogram(losses, is_wrong[rows])}


def predict(training: Trainer, judged: JudgedImages, on_batch: Callable[[], None] = lambda: None) -> Tensor:
    """What a training predicts for the images judged: f32 (T, C)."""
    store = training.inputs.test if judged.name == "test" else training.inputs.train
    if store is None:  # a test set that the training has not seen
        runner = BatchRunner(training.picture_method(), training.mean, training.std, training.device, on_batch)
        return runner.probabilities(runner.normalize(judged.pictures(torch.arange(len(judged.labels)))))
    return image_outputs.compute(training.method, training.evaluator.heads, store, on_batch, judged.rows).probabilities


def _of_backgrounds(
    runner: BatchRunner, judged: JudgedImages, rows: Tensor, probabilities: Tensor, training: Trainer
) -> dict[str, Any]:
    """What predictions (T', C) for these rows of the judged images depend on."""
    labels = judged.labels[rows].cpu()
    images = runner.normalize(judged.pictures(rows))
    set_rows = rows if judged.rows is None else judged.rows[rows]

    def measure_backgrounds(masks: Tensor) -> dict[str, Any]:
        """By one kind of mask; every kind sees the same partners."""
        generator = torch.Generator().manual_seed(seed_for(training.spec.seed, "figures"))
        classes = len(training.classes)
        return {
            "correlation": backgrounds.correlations(runner, images, masks),
            "backgrounds": backgrounds.background_reliance(runner, images, masks, labels, classes, generator),
        }

    central_masks = localization.central_mask(images[:1]).expand(len(images), -1, -1, -1)
    return {
        "rows": set_rows.tolist(),
        **measure_backgrounds(central_masks),
        "own_mask": measure_backgrounds(runner.masks(images)) if runner.has_localization(images) else None,
        "attention": attention_examples(runner, images, set_rows, labels, probabilities),
    }


def attention_examples(
    runner: BatchRunner, images: Tensor, rows: Tensor, labels: Tensor, probabilities: Tensor
) -> list[dict[str, Any]] | None:
    """Grad-CAM of up to `ATTENTION_IMAGES` images for their predicted classes (Fig. 1b).

    Args:
        runner: Of the method.
        images: Normalised (T, 3, S, S).
        rows: int64 (T,), what the entries call the images.
        labels: int64 (T,).
        probabilities: (T, C).

    Returns:
        Entries of `row`, `label`, `answer` (the predicted class) and `grad_cam` (h, w) in [0, 1]; None for networks
        without feature maps.
    """
    examples = image_store.evenly(len(labels), ATTENTION_IMAGES)
    maps = attention.grad_cam(runner.method, images[examples].to(runner.device))
    if maps is None:
        return None
    return [
        {
            "row": int(rows[i]),
            "label": int(labels[i]),
            "answer": int(probabilities[i].argmax()),
            "grad_cam": [[round(value, 3) for value in line] for line in lines],
        }
        for i, lines in zip(examples.tolist(), maps[:, 0].cpu().tolist(), strict=True)
    ]


def metrics(numbers: dict[str, Any]) -> dict[str, float | None]:
    """Those of `ReportData.numbers` that are among a job's metrics.

    `background_reliance` and `swapped_accuracy`, called `noisy_swapped_accuracy` where the images were judged by given
    labels. None where backgrounds could not be swapped.
    """
    reliance = numbers.get("backgrounds") or {}
    noisy = numbers.get("labels") == "given"
    return {
        "background_reliance": reliance.get("background_reliance"),
        "swapped_accuracy": None if noisy else reliance.get("swapped_accuracy"),
        "noisy_swapped_accuracy": reliance.get("swapped_accuracy") if noisy else None,
    }
