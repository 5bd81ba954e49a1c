"""Confident samples of PES: those whose given label the network predicts, with weights that balance their classes.

Bai et al., NeurIPS 2021, section 3.2.

Shapes: `N` samples, `C` classes.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from ml.blocks import losses
from ml.method import Network, TrainContext

VIEWS = 2  # augmented views whose mean probabilities decide

log = logging.getLogger(__name__)


class ConfidentSamples(nn.Module):
    """Which samples are confident; all of them until `select` is first called."""

    labels: Tensor
    mask: Tensor  # bool (N,): the confident samples
    class_weights: Tensor  # f32 (C,): `balancing_weights` of the confident samples

    def __init__(self, labels: Tensor, classes: int, max_weight: float = math.inf) -> None:
        """Start with every sample.

        Args:
            labels: given labels int64 (N,).
            classes: C.
            max_weight: upper bound of a class's weight.
        """
        super().__init__()
        self.max_weight = max_weight
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("mask", torch.ones(len(labels), dtype=torch.bool))
        self.register_buffer("class_weights", torch.ones(classes))

    def select(self, context: TrainContext, network: Network) -> None:
        """Select anew by the network's mean softmax over two augmented views, in eval mode; log the class counts."""
        probabilities = context.score(lambda images: network(images).float().softmax(dim=1), views=VIEWS)
        confident = probabilities.argmax(dim=1) == self.labels
        self.mask.copy_(fill_empty_classes(confident, self.mask, self.labels, len(self.class_weights)))
        counts = self._class_counts(self.mask)
        self.class_weights.copy_(balancing_weights(counts, self.max_weight))

        log.info("epoch %d: confident images by class %s", context.epoch + 1, [int(count) for count in counts.tolist()])
        filled = counts - self._class_counts(self.mask & confident)
        if bool(filled.any()):
            empty = [number for number, count in enumerate(filled.tolist()) if count]
            log.info(
                "epoch %d: no label of classes %s is predicted, they keep earlier images", context.epoch + 1, empty
            )

    def _class_counts(self, mask: Tensor) -> Tensor:
        return losses.one_hot(self.labels[mask], len(self.class_weights)).sum(dim=0)


def fill_empty_classes(selected: Tensor, previous: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`selected` and, for every class of which nothing is selected, its samples in `previous`: bool (N,).

    A class without samples is forgotten within an epoch and then never selected again.

    Args:
        selected: bool (N,).
        previous: bool (N,), the selection before.
        labels: given labels int64 (N,).
        classes: C.
    """
    has_samples = losses.one_hot(labels[selected], classes).sum(dim=0) > 0
    return selected | (previous & ~has_samples[labels])


def balancing_weights(counts: Tensor, maximum: float = math.inf) -> Tensor:
    """Weights f32 (C,) that give classes with these counts of samples (C,) equal influence.

    A weight is the mean size of the classes that have samples over the class's own size, at most `maximum`; 0 for a
    class without samples.
    """
    present = counts > 0
    mean = counts.sum() / present.sum().clamp_min(1)
    return torch.where(present, mean / counts.clamp_min(1), 0.0).clamp_max(maximum).float()
