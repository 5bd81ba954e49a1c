"""How much predictions depend on the background: feature correlations (the paper's Fig. 1a) and swapped backgrounds.

A mask M splits an image x into its foreground M * x and its background (1 - M) * x. In a swapped image the foreground
stands before the background of an image of another class, whose own object is painted over with the mean colour of
that background. It shows one object in another place.

Hiding the border of an image lowers the correlations whatever the method; accuracy on swapped images does not suffer
from that. A wide mask leaves most of an image unchanged, so methods can only be compared by the same masks. Labels
choose the other image and count right predictions; nothing is learned from them.

Shapes: `N` images f32 (N, 3, S, S) normalised, masks (N, 1, S, S) in [0, 1] with 1 on the object, features (N, D), `C`
classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ml.evaluation import attention
from ml.reports.batch_runner import BatchRunner

SWAPS = 3  # other backgrounds for each image
TINY = 1e-6


def correlations(runner: BatchRunner, images: Tensor, masks: Tensor) -> dict[str, float]:
    """How similar the features of an image's parts are to those of the whole image (Fig. 1a).

    Args:
        runner: With the method whose penultimate features are compared.
        images: (N, 3, S, S).
        masks: (N, 1, S, S).

    Returns:
        `foreground` and `background`: mean cosine similarity, in [-1, 1]. Every feature is standardised over the whole
        images first.
    """

    def features(replace: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        return runner.map_batches(images, lambda batch: attention.representation(runner.method, batch), replace)

    whole_image = features()
    mean, std = whole_image.mean(dim=0), whole_image.std(dim=0, correction=0) + TINY
    standardized = (whole_image - mean) / std
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "foreground": lambda rows: masks[rows] * images[rows],
        "background": lambda rows: (1 - masks[rows]) * images[rows],
    }
    return {
        name: float(torch.cosine_similarity(standardized, (features(part) - mean) / std, dim=1).mean())
        for name, part in parts.items()
    }


def choose_partners(labels: Tensor, generator: torch.Generator) -> Tensor | None:
    """For every image another one of another class, all of these equally likely.

    Args:
        labels: int64 (N,).
        generator: On the CPU.

    Returns:
        Rows int64 (N,), or None if all labels are of one class.
    """
    order = labels.argsort(stable=True)
    count = torch.bincount(labels)
    others = len(labels) - count[labels]
    if not bool(others.all()):
        return None
    # In sorted order the images of other classes follow the end of the own class, going around.
    class_end = count.cumsum(dim=0)[labels]
    steps = (torch.rand(len(labels), generator=generator) * others).long().clamp(max=others - 1)
    return order[(class_end + steps) % len(labels)]


def swap_backgrounds(images: Tensor, masks: Tensor, others: Tensor, other_masks: Tensor) -> Tensor:
    """The foregrounds of `images` before the backgrounds of `others`, all (B, ...) with masks (B, 1, S, S).

    The object of the other image is filled with the mean colour of its background.
    """
    outside = 1 - other_masks
    colour = (outside * others).sum(dim=(2, 3), keepdim=True) / (outside.sum(dim=(2, 3), keepdim=True) + TINY)
    return masks * images + (1 - masks) * (outside * others + other_masks * colour)


def background_reliance(
    runner: BatchRunner, images: Tensor, masks: Tensor, labels: Tensor, classes: int, generator: torch.Generator
) -> dict[str, Any] | None:
    """How far predictions move, and how much accuracy falls, when backgrounds are swapped.

    Args:
        runner: With the method that predicts.
        images: (N, 3, S, S).
        masks: (N, 1, S, S).
        labels: int64 (N,).
        classes: C.
        generator: Draws the partners, on the CPU.

    Returns:
        `accuracy` and `swapped_accuracy`; `background_reliance`, the mean over images and swaps of the total variation
        distance in [0, 1] between predictions before and after; the same `per_image` (N,) and `per_class` (C,), None
        for a class without images. None if all labels are of one class.
    """
    before = runner.probabilities(images)
    distances = torch.zeros(len(images))
    swapped_accuracy = 0.0
    for _ in range(SWAPS):
        partners = choose_partners(labels, generator)
        if partners is None:
            return None

        def swapped(rows: Tensor, partners: Tensor = partners) -> Tensor:
            other = partners[rows]
            return swap_backgrounds(images[rows], masks[rows], images[other], masks[other])

        after = runner.probabilities(images, swapped)
        distances += 0.5 * (after - before).abs().sum(dim=1) / SWAPS
        swapped_accuracy += float((after.argmax(dim=1) == labels).float().mean()) / SWAPS
    per_class = [float(distances[labels == c].mean()) if bool((labels == c).any()) else None for c in range(classes)]
    return {
        "accuracy": float((before.argmax(dim=1) == labels).float().mean()),
        "swapped_accuracy": swapped_accuracy,
        "background_reliance": float(distances.mean()),
        "per_class": per_class,
        "per_image": distances.tolist(),
    }
