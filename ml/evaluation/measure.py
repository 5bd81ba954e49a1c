"""Measuring: accuracies, calibration, and how well a ranking of labels finds the wrong ones.

What compares with clean labels compares here. It trains nothing and knows no method.

Shapes: `N` training images, `B` batch, `C` classes; logits and probabilities (B, C).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ml.data import image_store
from ml.evaluation.ranking import LabelIssues

BINS = 15  # of the expected calibration error (Guo et al. 2017)

Vector = NDArray[np.float64]


class Score(NamedTuple):
    """How well one head predicts one set."""

    accuracy: float
    loss: float  # mean cross-entropy
    calibration_error: float  # expected calibration error in [0, 1]


def scores(answers: Iterable[tuple[dict[str, Tensor], Tensor]]) -> dict[str, Score]:
    """The score of every head from batches of its logits (B, C) and labels (B,); waits for the device once, at the end.

    Empty without a batch.
    """
    sums: dict[str, Tensor] = {}
    for heads, labels in answers:
        for name, logits in heads.items():
            counted = _tally(logits.float(), labels)
            sums[name] = sums[name] + counted if name in sums else counted
    return {name: _score(tally.cpu()) for name, tally in sums.items()}


def _tally(logits: Tensor, labels: Tensor) -> Tensor:
    """(BINS + 1, 3): per bin of confidence its count, right answers, summed confidence; the last row is the loss."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    columns = torch.stack([torch.ones_like(right), right, confidence.double()], dim=1)
    bins = functional.one_hot((confidence * BINS).long().clamp(0, BINS - 1), BINS).double()
    loss = functional.cross_entropy(logits, labels, reduction="sum").double()
    return torch.cat([bins.T @ columns, loss.expand(1, 3)])  # a product, since scattered sums differ from run to run


def _score(tally: Tensor) -> Score:
    bins, loss = tally[:BINS], float(tally[BINS, 0])
    count = float(bins[:, 0].sum())
    return Score(float(bins[:, 1].sum()) / count, loss / count, float((bins[:, 1] - bins[:, 2]).abs().sum()) / count)


class EvaluationSplit:
    """Some images on a device, and the labels by which to measure a prediction of them: never trained on."""

    def __init__(self, pixels: image_store.ImageStore, rows: Tensor, labels: Tensor) -> None:
        """`rows` int64 (R,) of `pixels`, and the label of each."""
        self._pixels = pixels
        self._rows, self._labels = rows.to(pixels.device), labels.to(pixels.device)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows (B,), images (B, 3, S, S) and labels (B,); nothing where the part is empty."""
        size = self._pixels.eval_batch_size()
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            yield rows, self._pixels.unaugmented(rows), self._labels[start : start + size]


def summary(noisy_validation: Sequence[float | None], test: Sequence[float | None]) -> dict[str, float | int | None]:
    """The four figures of a training from its accuracies per epoch; `best_test` is shown, never used to choose."""
    if not test:
        return {}
    ranked = [(accuracy, epoch) for epoch, accuracy in enumerate(noisy_validation) if accuracy is not None]
    best_epoch = max(ranked, key=lambda pair: (pair[0], -pair[1]))[1] if ranked else None
    known = [accuracy for accuracy in test if accuracy is not None]
    tail = [accuracy for accuracy in test[-10:] if accuracy is not None]
    return {
        "last": test[-1],
        "best_noisy_val": None if best_epoch is None else test[best_epoch],
        "best_noisy_val_epoch": best_epoch,
        "best_test": max(known, default=None),
        "mean_last10": sum(tail) / len(tail) if tail else None,
    }


def auroc(score: Vector, wrong: NDArray[np.bool_]) -> float:
    """Chance that a wrong label scores below a right one, ties counted half; NaN if all are of one kind."""
    _, inverse, counts = np.unique(-score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(wrong.sum()), int((~wrong).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[wrong].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(score: Vector, wrong: NDArray[np.bool_]) -> float:
    """Mean precision at every wrong label, most suspicious first; NaN if none is wrong."""
    found = wrong[np.argsort(score, kind="stable")]
    precision = np.cumsum(found) / np.arange(1, len(found) + 1)
    return float(precision[found].mean()) if found.any() else float("nan")


def precision_at(score: Vector, wrong: NDArray[np.bool_], count: int) -> float:
    """Share of wrong labels among the `count` most suspicious ones."""
    return float(wrong[np.argsort(score, kind="stable")[:count]].mean()) if count else float("nan")


def wrong(given: Tensor, clean: Tensor | None) -> NDArray[np.int8] | None:
    """Which given labels int64 (N,) are wrong: 1, right: 0, unknown: -1; None where no clean label is known."""
    if clean is None or not bool((clean >= 0).any()):
        return None
    return torch.where(clean >= 0, (given.cpu() != clean).to(torch.int8), -1).to(torch.int8).numpy()


def ranking_quality(issues: LabelIssues, given: Tensor, clean: Tensor) -> dict[str, float] | None:
    """How well a ranking finds the labels that differ from the truth; `clean` is -1 where unknown."""
    known = (clean >= 0).cpu().numpy()
    wrong = (given != clean).cpu().numpy()[known]
    if not wrong.any() or wrong.all():
        return None
    score, flagged = issues.label_score[known], issues.is_label_issue[known]
    return {
        "noise_rate": float(wrong.mean()),
        "auroc": auroc(score, wrong),
        "average_precision": average_precision(score, wrong),
        "precision_at_count": precision_at(score, wrong, int(wrong.sum())),
        "issue_precision": float(wrong[flagged].mean()) if flagged.any() else 0.0,
        "issue_recall": float(flagged[wrong].mean()),
    }
