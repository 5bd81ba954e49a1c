"""How predictions relate to labels: confusion matrix, reliability diagram, losses of right and wrong labels (Fig. 1c).

The caller knows whether the labels are clean and which of them are wrong.

Shapes: `N` images, `C` classes; probabilities f32 (N, C), labels int64 (N,), losses f32 (N,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ml.evaluation.measure import BINS

PAIRS = 50  # of confused classes
LOSS_BINS = 40
LARGEST_SHARE = 0.995  # of the losses lies below the last edge; the others count in the last bin
LARGEST_LOSS = 1e4


def confusion(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts (C, C) of `probabilities` (N, C) by `labels` (N,): a row for each label, a column for each prediction."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(dim=1)
    counts: list[list[int]] = torch.bincount(pairs, minlength=classes**2).view(classes, classes).tolist()
    return counts


def most_confused(probabilities: Tensor, labels: Tensor) -> list[dict[str, int]]:
    """The most frequent pairs of `label` and another `predicted` class, with their `count`; at most `PAIRS`."""
    predicted = probabilities.argmax(dim=1)
    wrong = predicted != labels
    pairs, counts = torch.unique(torch.stack([labels[wrong], predicted[wrong]]), dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:PAIRS]
    return [
        {"label": int(pairs[0, pair]), "predicted": int(pairs[1, pair]), "count": int(counts[pair])}
        for pair in order.tolist()
    ]


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, float | int | None]]:
    """The `BINS` bins of the expected calibration error (Guo et al. 2017).

    Returns:
        For each bin its lower edge `from`, the `count` of predictions in it, their mean `confidence` and their
        `accuracy`; the last two are None in an empty bin.
    """
    confidence, predicted = probabilities.max(dim=1)
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    entries: list[dict[str, float | int | None]] = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        accuracy = float((predicted == labels)[inside].float().mean()) if count else None
        mean_confidence = float(confidence[inside].mean()) if count else None
        entries.append({"from": number / BINS, "count": count, "confidence": mean_confidence, "accuracy": accuracy})
    return entries


def loss_histogram(losses: Tensor, wrong: Tensor) -> dict[str, Any]:
    """Histograms of the losses of right and of wrong labels.

    Args:
        losses: (N,).
        wrong: bool (N,), which labels are wrong.

    Returns:
        `edges` (LOSS_BINS + 1,), counts `right` and `wrong` (LOSS_BINS,), and the `mean` loss of both, None if there
        are no such labels.
    """
    losses = losses.clamp(0, LARGEST_LOSS)
    last_edge = max(float(losses.quantile(LARGEST_SHARE)), 1e-3)
    clipped = losses.clamp(max=last_edge)
    groups = {"right": clipped[~wrong], "wrong": clipped[wrong]}
    return {
        "edges": torch.linspace(0, last_edge, LOSS_BINS + 1).tolist(),
        **{name: torch.histc(group, LOSS_BINS, 0, last_edge).long().tolist() for name, group in groups.items()},
        "mean": {name: float(group.mean()) if len(group) else None for name, group in groups.items()},
    }
