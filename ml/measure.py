"""Measuring: accuracies, calibration, and which given labels are probably wrong.

The only module of `ml` that takes clean labels. It trains nothing and knows no method.

Shapes: `N` training images, `B` batch, `C` classes, `E` epochs that ranked labels; logits and probabilities (B, C).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ml import loader

BINS = 15  # of the expected calibration error (Guo et al. 2017)
LONGEST_LOG = 200  # epochs of margins kept; memorisation sets in long before
LARGEST_MARGIN = 6e4  # float16 ends at 65504

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


class Part:
    """Some images on a device, and the labels by which to measure a prediction of them: never trained on."""

    def __init__(self, pixels: loader.Pixels, rows: Tensor, labels: Tensor) -> None:
        """`rows` int64 (R,) of `pixels`, and the label of each."""
        self._pixels = pixels
        self._rows, self._labels = rows.to(pixels.device), labels.to(pixels.device)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows (B,), images (B, 3, S, S) and labels (B,); nothing where the part is empty."""
        size = self._pixels.plain_rows()
        for start in range(0, len(self._rows), size):
            rows = self._rows[start : start + size]
            yield rows, self._pixels.plain(rows), self._labels[start : start + size]


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


class LabelLog:
    """What plain logits said of every given label, epoch by epoch: the material that labels are ranked from."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        """`labels` int64 (N,): the given ones, on the training's device."""
        self._labels = labels
        self._unseen = torch.full((len(labels),), torch.nan, dtype=torch.float16, device=labels.device)
        # float16 (N,) for each epoch that ranked labels; NaN where a label was not seen
        self.margins: list[Tensor] = []
        self.sums = torch.zeros(len(labels), classes, device=labels.device)  # of softmax; counts are in `counts`
        self.counts = torch.zeros(len(labels), device=labels.device)
        self.best: tuple[float, int, Tensor, Tensor] | None = None  # accuracy, epochs, sums, counts when it was best
        self._current: Tensor | None = None

    @property
    def ranking(self) -> bool:
        """Whether this epoch has ranked labels so far."""
        return self._current is not None

    def observe(self, rows: Tensor, logits: Tensor) -> None:
        """Logits (B, C) of the images in rows (B,): remembered without waiting for the device."""
        if len(self.margins) >= LONGEST_LOG:
            return
        if self._current is None:
            self._current = self._unseen.clone()
        logits, given = logits.detach().float(), self._labels[rows][:, None]
        others = logits.scatter(1, given, -torch.inf).amax(dim=1)
        margins = (logits.gather(1, given)[:, 0] - others).clamp(-LARGEST_MARGIN, LARGEST_MARGIN)
        self._current[rows] = margins.half()
        self.sums[rows] += logits.softmax(dim=1)
        self.counts[rows] += 1

    def end_epoch(self, noisy_validation_accuracy: float | None) -> None:
        """Close the epoch. The ranking uses the epochs up to the best noisy-validation one: later ones memorise."""
        if self._current is None:
            return
        self.margins.append(self._current)
        self._current = None
        accuracy = 0.0 if noisy_validation_accuracy is None else noisy_validation_accuracy
        if self.best is None or accuracy > self.best[0] or noisy_validation_accuracy is None:
            self.best = (accuracy, len(self.margins), self.sums.clone(), self.counts.clone())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON to restore from."""
        tensors = {"sums": self.sums, "counts": self.counts}
        facts: dict[str, Any] = {"best": None}
        if self.margins:
            tensors["margins"] = torch.stack(self.margins)
        if self._current is not None:
            tensors["current"] = self._current
        if self.best is not None:
            facts["best"] = [self.best[0], self.best[1]]
            tensors |= {"best_sums": self.best[2], "best_counts": self.best[3]}
        return tensors, facts

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become what `state` described."""
        placed = {name: tensor.to(self._labels.device, copy=True) for name, tensor in tensors.items()}
        self.sums, self.counts = placed["sums"], placed["counts"]
        self.margins = list(placed["margins"]) if "margins" in placed else []
        self._current = placed.get("current")
        best = facts["best"]
        self.best = None if best is None else (best[0], best[1], placed["best_sums"], placed["best_counts"])


@dataclass(frozen=True)
class LabelIssues:
    """The ranking of every given label, in cleanlab's words."""

    label_score: Vector  # (N,) in [0, 1], low is suspicious
    predicted_label: NDArray[np.int64]  # (N,)
    is_label_issue: NDArray[np.bool_]  # (N,)
    noise_rate: float  # estimated share of wrong labels
    transition: Vector  # (C, C), estimated P(given j | likely i); rows sum to 1


def label_issues(labels: Tensor, log: LabelLog, held_out: Tensor | None = None) -> LabelIssues | None:
    """Rank the given labels by their margin averaged over epochs (AUM); None if no epoch was logged.

    How many are wrong is estimated by confident learning on the probabilities averaged over the same epochs (too many
    while the network is weak: 1.1 to 1.6 times the truth); that many of the lowest scores are issues,
    unless the prediction agrees with the label. `held_out` are the rows that were not
    trained on: their margins are lower, and are shifted so that both groups have one median.
    """
    if log.best is None:
        return None
    given = labels.cpu().numpy()
    _, epochs, sums, times = log.best
    aum = np.nanmean(_seen(torch.stack(log.margins[:epochs]).double().cpu().numpy()), axis=0)
    if held_out is not None and 0 < len(held_out) < len(given):
        outside = np.zeros(len(given), dtype=bool)
        outside[held_out.cpu().numpy()] = True
        aum[outside] += np.median(aum[~outside]) - np.median(aum[outside])
    probabilities = (sums / times.clamp(min=1)[:, None]).double().cpu().numpy()
    predicted = probabilities.argmax(axis=1)
    counts = confident_counts(given, probabilities)
    rate = float(counts.sum() - np.trace(counts)) / len(given)
    worst = np.argsort(aum, kind="stable")[: round(rate * len(given))]
    issue = np.zeros(len(given), dtype=bool)
    issue[worst] = True
    transition = transition_matrix(counts, np.bincount(given, minlength=len(counts)))
    return LabelIssues(_sigmoid(aum), predicted, issue & (predicted != given), rate, transition)


def confident_counts(given: NDArray[np.int64], probabilities: Vector) -> Vector:
    """(C, C) counts of (given i, confidently j), of the rows that are confident of any class (Northcutt et al. 2021).

    A row is confident of class j if its probability of j reaches the mean among the rows whose given label is j.
    """
    classes = probabilities.shape[1]
    present = np.bincount(given, minlength=classes)
    own = np.bincount(given, weights=probabilities[np.arange(len(given)), given], minlength=classes)
    thresholds = np.where(present > 0, own / np.maximum(present, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    likely, sure = confident.argmax(axis=1), confident.max(axis=1) >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (given[sure], likely[sure]), 1)
    return counts


def transition_matrix(counts: Vector, present: NDArray[np.int64]) -> Vector:
    """(C, C) P(given j | likely i), rows summing to 1: confident counts rescaled to how often each label is given."""
    taken = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, np.eye(len(counts)))  # else at its word
    joint = taken / taken.sum(axis=1, keepdims=True) * present[:, None]
    likely = joint.sum(axis=0)
    return np.where(likely[:, None] > 0, joint.T / np.maximum(likely, 1e-12)[:, None], np.eye(len(joint)))


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


def _seen(margins: Vector) -> Vector:
    """A row that no epoch has seen has margin 0: neither suspicious nor trusted."""
    margins[:, np.isnan(margins).all(axis=0)] = 0.0
    return margins


def _sigmoid(values: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))), dtype=np.float64)
