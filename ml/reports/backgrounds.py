"""What a prediction owes to the background: the paper's Fig. 1a, swapped backgrounds, background reliance.

A picture is taken apart by a mask M: foreground M·x, background (1 - M)·x. A swapped picture is x before the background
of a picture of another class, from which that one's own object is wiped out: it shows one object, elsewhere.
Correlations are lowered by anything that hides the border; accuracy on swapped pictures is not, since the object has
to be told apart in either. But a wide mask leaves most of a picture as it is, so that methods compare by the same mask
alone. Labels serve to choose the other picture and to count what is right.

Shapes: `N` images (N, 3, S, S) normalised, masks (N, 1, S, S) in [0, 1], features (N, D), `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml.evaluation import attention
from ml.reports.batch_runner import BatchRunner

SWAPS = 3  # other backgrounds each picture is seen before
TINY = 1e-6


def correlations(viewer: BatchRunner, images: Tensor, masks: Tensor) -> dict[str, float]:
    """Fig. 1a: mean per-image cosine of the whole image's features with its foreground's (`foreground`) and its
    background's (`background`), each feature standardised over the whole images."""

    def features(changed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return viewer.each(images, lambda batch: attention.representation(viewer.method, batch), changed)

    whole = features()
    mean, std = whole.mean(dim=0), whole.std(dim=0, correction=0) + TINY
    standard = (whole - mean) / std
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "foreground": lambda rows: masks[rows] * images[rows],
        "background": lambda rows: (1 - masks[rows]) * images[rows],
    }
    return {
        name: float(torch.cosine_similarity(standard, (features(part) - mean) / std, dim=1).mean())
        for name, part in parts.items()
    }


def partners(labels: Tensor, generator: torch.Generator) -> Tensor | None:
    """For each of labels int64 (N,) a random row of another class, all those equally likely; None for one class."""
    order = labels.argsort(stable=True)
    count = torch.bincount(labels)
    others = len(labels) - count[labels]
    if not bool(others.all()):
        return None
    behind = count.cumsum(dim=0)[labels]  # in sorted order the own class ends here; the others follow, going round
    drawn = (torch.rand(len(labels), generator=generator) * others).long().clamp(max=others - 1)
    return order[(behind + drawn) % len(labels)]


def swapped(images: Tensor, masks: Tensor, others: Tensor, their_masks: Tensor) -> Tensor:
    """Every image's object before the background of another one, whose own object is filled with that background's
    mean colour; all (B, ...)."""
    outside = 1 - their_masks
    colour = (outside * others).sum(dim=(2, 3), keepdim=True) / (outside.sum(dim=(2, 3), keepdim=True) + TINY)
    return masks * images + (1 - masks) * (outside * others + their_masks * colour)


def reliance(
    viewer: BatchRunner, images: Tensor, masks: Tensor, labels: Tensor, classes: int, generator: torch.Generator
) -> dict[str, Any] | None:
    """Accuracy before and after swapping, and how far each prediction moves: total variation distance, in [0, 1].

    `per_image` (N,), `per_class` (C,) by label (None where a class has no image); None where all images are of one
    class.
    """
    before = viewer.probabilities(images)
    moved = torch.zeros(len(images))
    right = 0.0
    for _ in range(SWAPS):
        partner = partners(labels, generator)
        if partner is None:
            return None

        def changed(rows: Tensor, partner: Tensor = partner) -> Tensor:
            other = partner[rows]
            return swapped(images[rows], masks[rows], images[other], masks[other])

        after = viewer.probabilities(images, changed)
        moved += 0.5 * (after - before).abs().sum(dim=1) / SWAPS
        right += float((after.argmax(dim=1) == labels).float().mean()) / SWAPS
    per_class = [float(moved[labels == c].mean()) if bool((labels == c).any()) else None for c in range(classes)]
    return {
        "accuracy": float((before.argmax(dim=1) == labels).float().mean()),
        "swapped_accuracy": right,
        "background_reliance": float(moved.mean()),
        "per_class": per_class,
        "per_image": moved.tolist(),
    }
