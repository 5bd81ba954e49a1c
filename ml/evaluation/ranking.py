"""Which given labels are probably wrong, by what one training says of them while it learns.

The score of a label is its margin, how far its logit lies above the best other one, averaged over epochs (area under
the margin, Pleiss et al. 2020). Four things are ours (evidence: `docs/evidence/ranking.md`). Logits are first measured
against their class's standard, as confident learning measures probabilities (Northcutt et al. 2021): a class that the
network names boldly must say more to count. An epoch weighs the more the later it is and the fewer given labels the
network fits: early ones know little, and those that fit all have memorised the wrong ones too. Images that were held
out are put on the scale of those trained on. And a label that the images answered alike do not share loses: what a
network says of an image tells its neighbours too. It knows no clean labels and no method.

Shapes: `N` training images, `B` batch, `C` classes; logits and probabilities (B, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

STANDARD = 0.75  # how much of a class's standard is taken off its logit: best on the mean of our four sets
SHARPNESS = 4.0  # an epoch weighs (its number * share of labels that it does not fit) to this power
LEAST_LEFT = 1e-3  # where all labels are fitted, epochs still count
COMPANY = 0.5  # how much the neighbours' labels weigh against the margin
NEIGHBOURS, REFERENCES, CHUNK = 30, 8192, 1024  # looked at of each image, looked for among, rows at a time
LARGEST_LOGIT = 1e4  # of a network that is about to diverge: sums stay finite

Vector = NDArray[np.float64]


class Heard(NamedTuple):
    """Sums of what was said of every label."""

    margins: Tensor  # f32 (N,)
    probabilities: Tensor  # f32 (N, C)
    weights: Tensor  # f32 (N,): what the other two are to be divided by

    @classmethod
    def nothing(cls, count: int, classes: int, place: torch.device) -> Heard:
        """Of `count` labels."""
        return cls(*(torch.zeros(shape, device=place) for shape in (count, (count, classes), count)))


class MarginTracker:
    """What plain logits said of every given label: the material that labels are ranked from."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        """`labels` int64 (N,): the given ones, on the training's device."""
        place = labels.device
        self._labels, self._classes = labels, classes
        self.heard = Heard.nothing(len(labels), classes, place)  # in the epochs that have ended, each with its weight
        self.epochs = 0  # that ranked labels and have ended
        self.ranking = False  # whether this epoch has ranked labels so far
        self._now = Heard.nothing(len(labels), classes, place)  # in this epoch
        # Per class, of the images it is given to: its mean logit in the last epoch. And of this epoch: the sum of these
        # logits, how many there are, how many of them were above all others.
        self._standards = torch.zeros(classes, device=place)
        self._own = torch.zeros(3, classes, device=place)

    def record_logits(self, rows: Tensor, logits: Tensor) -> None:
        """Logits (B, C) of the images in rows (B,): remembered without waiting for the device."""
        self.ranking = True
        logits = logits.detach().float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        given = (self._labels[rows][:, None] == torch.arange(self._classes, device=logits.device)).float()
        judged = logits - STANDARD * self._standards
        margins = (given * judged).sum(dim=1) - judged.masked_fill(given.bool(), -torch.inf).amax(dim=1)
        self._own += torch.stack([given * logits, given, given * (margins > 0)[:, None]]).sum(dim=1)
        self._now.margins[rows] += margins
        self._now.probabilities[rows] += judged.softmax(dim=1)
        self._now.weights[rows] += 1

    def end_epoch(self) -> None:
        """Close the epoch: what it said counts the more, the later it is and the fewer given labels it agreed with."""
        if not self.ranking:
            return
        sums, counts, fitted = self._own
        self._standards.copy_(torch.where(counts > 0, sums / counts.clamp(min=1), self._standards))
        self.epochs += 1
        self.ranking = False
        weight = (self.epochs * (1 - fitted.sum() / counts.sum()).clamp(min=LEAST_LEFT)) ** SHARPNESS
        for total, now in zip(self.heard, self._now, strict=True):
            total.add_(weight * now)
            now.zero_()
        self._own.zero_()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON to restore from."""
        tensors = {"standards": self._standards, "own": self._own, **self.heard._asdict()}
        tensors |= {f"now_{name}": tensor for name, tensor in self._now._asdict().items()}
        return tensors, {"epochs": self.epochs, "ranking": self.ranking}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Become what `state` described."""
        placed = {name: tensor.to(self._labels.device, copy=True) for name, tensor in tensors.items()}
        self._standards, self._own = placed["standards"], placed["own"]
        self.heard = Heard(*(placed[name] for name in Heard._fields))
        self._now = Heard(*(placed[f"now_{name}"] for name in Heard._fields))
        self.epochs, self.ranking = facts["epochs"], facts["ranking"]


@dataclass(frozen=True)
class LabelIssues:
    """The ranking of every given label, in cleanlab's words."""

    label_score: Vector  # (N,) in [0, 1], low is suspicious
    predicted_label: NDArray[np.int64]  # (N,)
    is_label_issue: NDArray[np.bool_]  # (N,)
    noise_rate: float  # estimated share of wrong labels
    transition: Vector  # (C, C), estimated P(given j | likely i); rows sum to 1


def label_issues(labels: Tensor, log: MarginTracker, held_out: Tensor | None = None) -> LabelIssues | None:
    """Rank the given labels; None if no epoch was logged. `held_out` are the rows that were not trained on.

    How many are wrong is estimated from the predictions that contradict a label (`contradictions`); so many of the
    lowest scores are issues, unless the prediction agrees with the label.
    """
    if not log.epochs:
        return None
    given = labels.cpu().numpy()
    margins, sums, weights = (each.double().cpu().numpy() for each in log.heard)
    seen = weights > 0
    times = np.where(seen, weights, 1.0)
    margins, probabilities = margins / times, sums / times[:, None]
    if held_out is not None and 0 < len(held_out) < len(given):
        margins = aligned(margins, held_out.cpu().numpy())
    if seen.any():
        margins[seen] += company(given[seen], probabilities[seen]) * margins[seen].std()
        margins[~seen] = np.median(margins[seen])  # neither suspicious nor trusted
    predicted = np.where(seen, probabilities.argmax(axis=1), given)
    counts = contradictions(given, probabilities)
    rate = float(counts.sum() - np.trace(counts)) / len(given)
    issue = np.zeros(len(given), dtype=bool)
    issue[np.argsort(margins, kind="stable")[: round(rate * len(given))]] = True
    return LabelIssues(_sigmoid(margins), predicted, issue & (predicted != given), rate, transition_matrix(counts))


def company(given: NDArray[np.int64], probabilities: Vector) -> Vector:
    """How well labels (N,) agree with those of the images that the training answered most alike, by (N, C).

    Log odds of the label's share among the `NEIGHBOURS` nearest by Bhattacharyya's coefficient, over its share of all,
    against the best other label's; standardised, times `COMPANY`. Zeros where there are too few images.
    """
    classes = np.unique(given)
    references = np.linspace(0, len(given) - 1, min(len(given), REFERENCES)).round().astype(np.int64)
    if len(references) <= NEIGHBOURS or len(classes) < 2:
        return np.zeros(len(given))
    roots = torch.from_numpy(np.sqrt(probabilities)).float()
    labels = torch.from_numpy(np.searchsorted(classes, given))
    votes = functional.one_hot(labels[references]).float()
    frequency = torch.bincount(labels) / len(labels)
    found = []
    for rows in torch.split(torch.arange(len(given)), CHUNK):
        alike = roots[rows] @ roots[references].t()
        alike[rows[:, None] == torch.from_numpy(references)] = -1.0  # an image is not its own neighbour
        share = votes[alike.topk(NEIGHBOURS, dim=1).indices].mean(dim=1)
        odds = torch.log((share + 1 / NEIGHBOURS) / frequency)
        own = odds.gather(1, labels[rows, None])
        found.append(own[:, 0] - odds.scatter(1, labels[rows, None], -torch.inf).amax(dim=1))
    agreement: Vector = torch.cat(found).double().numpy()
    spread = float(agreement.std())
    return COMPANY * (agreement - agreement.mean()) / spread if spread > 0 else np.zeros(len(given))


def aligned(margins: Vector, held_out: NDArray[np.int64]) -> Vector:
    """Margins (N,), those of the rows held out with the median and the distance of quartiles of the others.

    Nothing pulls the margin of an image that is not trained on towards its label, so they are lower and wider.
    """
    outside = np.zeros(len(margins), dtype=bool)
    outside[held_out] = True
    (low, middle, high), (lower, own, upper) = (
        np.quantile(margins[part], (0.25, 0.5, 0.75)) for part in (~outside, outside)
    )
    scale = (high - low) / (upper - lower) if high > low and upper > lower else 1.0
    return np.where(outside, (margins - own) * scale + middle, margins)


def contradictions(given: NDArray[np.int64], probabilities: Vector) -> Vector:
    """(C, C) expected counts of (given i, likely j), which sum to N.

    A prediction that contradicts the given label counts with its probability, and the label with the rest. That is
    fewer than confident learning counts, which takes most of what a weak network doubts for wrong.
    """
    rows, classes = np.arange(len(given)), probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    doubt = np.where(predicted == given, 0.0, probabilities[rows, predicted])
    counts = np.zeros((classes, classes))
    np.add.at(counts, (given, predicted), doubt)
    np.add.at(counts, (given, given), 1 - doubt)
    return counts


def transition_matrix(counts: Vector) -> Vector:
    """(C, C) P(given j | likely i), rows summing to 1, from counts of (given i, likely j)."""
    likely = counts.sum(axis=0)
    return np.where(likely[:, None] > 0, counts.T / np.maximum(likely, 1e-12)[:, None], np.eye(len(counts)))


def _sigmoid(values: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))), dtype=np.float64)
