"""Accuracies, calibration error, and how well a ranking of labels finds the wrong ones.

Only this module and what calls it compare labels with clean ones. It trains nothing and knows no method.

Shapes: `N` training images, `B` batch, `C` classes; logits and probabilities (B, C), labels int64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ml.data.input_store import InputStore, eval_batches
from ml.evaluation.ranking import LabelIssues, Vector

BINS = 15  # of the expected calibration error (Guo et al. 2017)


class Score(NamedTuple):
    """How well one head predicts one split."""

    accuracy: float  # in [0, 1]
    loss: float  # mean cross-entropy
    calibration_error: float  # expected calibration error over `BINS` bins, in [0, 1]


def scores(batches: Iterable[tuple[dict[str, Tensor], Tensor]]) -> dict[str, Score]:
    """The score of every head.

    Waits for the device once, at the end.

    Args:
        batches: Logits (B, C) by head, and labels (B,), of one batch after the other.

    Returns:
        Scores by head; empty if there is no batch.
    """
    sums: dict[str, Tensor] = {}
    for heads, labels in batches:
        for name, logits in heads.items():
            tally = _tally(logits.float(), labels)
            sums[name] = sums[name] + tally if name in sums else tally
    return {name: _score(tally.cpu()) for name, tally in sums.items()}


def _tally(logits: Tensor, labels: Tensor) -> Tensor:
    """(BINS + 1, 3): for each bin of confidence count, right predictions, confidence; the last row is the loss."""
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
    """Images on a device and the labels by which their predictions are measured, in batches without augmentation."""

    def __init__(self, store: InputStore, rows: Tensor, labels: Tensor) -> None:
        """Select images.

        Args:
            store: Holds the images.
            rows: int64 (R,), which of them.
            labels: int64 (R,), one for each row; may be any other values (R, ...) to be compared with.
        """
        self._store = store
        self._rows, self._labels = rows.to(store.device), labels.to(store.device)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of rows (B,), images (B, 3, S, S) and labels (B,); none if the split is empty."""
        if not len(self):
            return
        labels = torch.split(self._labels, self._store.eval_batch_size())
        for rows, of_rows in zip(eval_batches(self._store, self._rows), labels, strict=True):
            yield rows, self._store.unaugmented(rows), of_rows


def summary(noisy_validation: Sequence[float | None], test: Sequence[float | None]) -> dict[str, float | int | None]:
    """The reported test accuracies of a training.

    Args:
        noisy_validation: Accuracy of every epoch on the validation split by given labels; None where not measured.
        test: Accuracy of every epoch on the test set.

    Returns:
        `last`; `best_noisy_val` at the epoch `best_noisy_val_epoch` (counted from 1) of the best noisy validation;
        `best_test`, which is reported but never used to choose; `mean_last10`. Empty without an epoch.
    """
    if not test:
        return {}
    ranked = [(accuracy, epoch) for epoch, accuracy in enumerate(noisy_validation, start=1) if accuracy is not None]
    best_epoch = max(ranked, key=lambda pair: (pair[0], -pair[1]))[1] if ranked else None
    known = [accuracy for accuracy in test if accuracy is not None]
    tail = [accuracy for accuracy in test[-10:] if accuracy is not None]
    return {
        "last": test[-1],
        "best_noisy_val": None if best_epoch is None else test[best_epoch - 1],
        "best_noisy_val_epoch": best_epoch,
        "best_test": max(known, default=None),
        "mean_last10": sum(tail) / len(tail) if tail else None,
    }


def auroc(score: Vector, wrong: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a wrong label scores below a right one, ties counted half.

    Args:
        score: Label quality scores (N,), low is suspicious.
        wrong: bool (N,), which labels are wrong.

    Returns:
        In [0, 1]; NaN if all labels are wrong or none is.
    """
    _, inverse, counts = np.unique(-score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = int(wrong.sum()), int((~wrong).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[wrong].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(score: Vector, wrong: NDArray[np.bool_]) -> float:
    """Mean precision at every wrong label, lowest score first; NaN if no label is wrong. Arguments as in `auroc`."""
    sorted_wrong = wrong[np.argsort(score, kind="stable")]
    precision = np.cumsum(sorted_wrong) / np.arange(1, len(sorted_wrong) + 1)
    return float(precision[sorted_wrong].mean()) if sorted_wrong.any() else float("nan")


def precision_at(score: Vector, wrong: NDArray[np.bool_], count: int) -> float:
    """Share of wrong labels among the `count` lowest scores; NaN if `count` is 0. Arguments as in `auroc`."""
    return float(wrong[np.argsort(score, kind="stable")[:count]].mean()) if count else float("nan")


def wrong_labels(labels: Tensor, clean: Tensor | None) -> NDArray[np.int8] | None:
    """Which given labels are wrong.

    Args:
        labels: Given labels int64 (N,).
        clean: Clean labels int64 (N,), -1 where unknown.

    Returns:
        int8 (N,): 1 wrong, 0 right, -1 unknown; None if no clean label is known.
    """
    if clean is None or not bool((clean >= 0).any()):
        return None
    return torch.where(clean >= 0, (labels.cpu() != clean).to(torch.int8), -1).to(torch.int8).numpy()


def ranking_quality(issues: LabelIssues, labels: Tensor, clean: Tensor) -> dict[str, float] | None:
    """How well a ranking finds the labels that differ from the clean ones.

    Args:
        issues: The ranking of N labels.
        labels: The given labels int64 (N,) that were ranked.
        clean: Clean labels int64 (N,), -1 where unknown; unknown ones are left out.

    Returns:
        `noise_rate`, the share of wrong labels; `auroc`, `average_precision` and `precision_at_count` (count: the
        number of wrong labels) of the scores; `issue_precision` and `issue_recall` of the flags. All in [0, 1]. None
        if all labels are wrong or none is.
    """
    known = (clean >= 0).cpu().numpy()
    wrong = (labels != clean).cpu().numpy()[known]
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
