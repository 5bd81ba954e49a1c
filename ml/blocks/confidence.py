"""Which given labels a network agrees with, and how much their classes then weigh (Bai et al., NeurIPS 2021, 3.2).

Knows given labels and what a network answers, no loss and no schedule. Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from ml.blocks import losses
from ml.method import Network, TrainContext

VIEWS = 2  # whose mean answer decides

log = logging.getLogger(__name__)


class ConfidentSamples(nn.Module):
    """The images whose given label their network predicts; all of them until `select` is first called."""

    labels: Tensor
    mask: Tensor  # bool (N,)
    class_weights: Tensor  # f32 (C,): as `weights` of the images in the mask

    def __init__(self, labels: Tensor, classes: int, cap: float = math.inf) -> None:
        """Given labels int64 (N,); no class weighs more than `cap`."""
        super().__init__()
        self.cap = cap
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("mask", torch.ones(len(labels), dtype=torch.bool))
        self.register_buffer("class_weights", torch.ones(classes))

    def select(self, lab: TrainContext, network: Network) -> None:
        """Choose anew, by the mean softmax of two augmented views in eval mode; the classes' shares are logged."""
        answers = lab.score(lambda images: network(images).float().softmax(dim=1), views=VIEWS)
        chosen = answers.argmax(dim=1) == self.labels
        self.mask.copy_(fill_empty_classes(chosen, self.mask, self.labels, len(self.class_weights)))
        counts = self._counts(self.mask)
        self.class_weights.copy_(balancing_weights(counts, self.cap))
        kept = counts - self._counts(self.mask & chosen)
        log.info("epoch %d: confident images by class %s", lab.epoch, [int(count) for count in counts.tolist()])
        if bool(kept.any()):
            starving = [number for number, count in enumerate(kept.tolist()) if count]
            log.info("epoch %d: no label of classes %s is predicted, they keep earlier images", lab.epoch, starving)

    def _counts(self, mask: Tensor) -> Tensor:
        return losses.one_hot(self.labels[mask], len(self.class_weights)).sum(dim=0)


def fill_empty_classes(chosen: Tensor, before: Tensor, labels: Tensor, classes: int) -> Tensor:
    """`chosen` bool (N,), and of every class of which nothing is chosen the images of `before`.

    A class without images is forgotten within an epoch and then never chosen again.
    """
    alive = losses.one_hot(labels[chosen], classes).sum(dim=0) > 0
    return chosen | (before & ~alive[labels])


def balancing_weights(counts: Tensor, cap: float = math.inf) -> Tensor:
    """Mean count over classes that have images, over each class's own (C,); 0 for one that has none, at most `cap`."""
    present = counts > 0
    mean = counts.sum() / present.sum().clamp_min(1)
    return torch.where(present, mean / counts.clamp_min(1), 0.0).clamp_max(cap).float()
