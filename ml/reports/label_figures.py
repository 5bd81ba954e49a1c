"""How answers stand to labels: confusion matrix, reliability diagram, losses of right and wrong labels (Fig. 1c).

Labels come as they are: the caller knows whether they are true, and which of them are wrong.

Shapes: `N` answers, `C` classes; probabilities (N, C), labels int64 (N,), losses (N,).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ml.evaluation.measure import BINS

LOSS_BINS = 40
LARGEST_SHARE = 0.995  # of the losses lies below the last edge; the rest counts in the last bin


def confusion(probabilities: Tensor, labels: Tensor) -> list[list[int]]:
    """Counts (C, C): a row for each label, a column for each answer."""
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(dim=1)
    counts: list[list[int]] = torch.bincount(pairs, minlength=classes**2).view(classes, classes).tolist()
    return counts


def reliability(probabilities: Tensor, labels: Tensor) -> list[dict[str, float | int | None]]:
    """The 15 bins of the calibration error (Guo et al. 2017): how sure the answers in each are, and how often right."""
    confidence, answer = probabilities.max(dim=1)
    bins = (confidence * BINS).long().clamp(0, BINS - 1)
    found: list[dict[str, float | int | None]] = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        right = float((answer == labels)[inside].float().mean()) if count else None
        sure = float(confidence[inside].mean()) if count else None
        found.append({"from": number / BINS, "count": count, "confidence": sure, "accuracy": right})
    return found


def loss_histogram(losses: Tensor, wrong: Tensor) -> dict[str, Any]:
    """Counts over `edges` of the losses of right and of wrong labels; `wrong` bool (N,)."""
    losses = losses.clamp(0, 1e4)
    largest = max(float(losses.quantile(LARGEST_SHARE)), 1e-3)
    shown = losses.clamp(max=largest)
    parts = {"right": shown[~wrong], "wrong": shown[wrong]}
    return {
        "edges": torch.linspace(0, largest, LOSS_BINS + 1).tolist(),
        **{name: torch.histc(part, LOSS_BINS, 0, largest).long().tolist() for name, part in parts.items()},
        "mean": {name: float(part.mean()) if len(part) else None for name, part in parts.items()},
    }
