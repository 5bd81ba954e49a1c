"""The common base of methods with one network: the network, its prediction, its SGD, and plain and MixUp steps.

Shapes: `N` images, `B` batch, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ml import method
from ml.blocks import losses, mixup
from ml.method import Batch, MethodParams, Network, Optimizers, TrainHyperparameters

P = TypeVar("P", bound=MethodParams)


class ViewParams(MethodParams):
    """How several views of a step pass the network."""

    view_statistics: Literal["joint", "apart"] = Field(
        default="joint",
        description="What normalises weak and strong views in training. joint: the statistics of one batch of both, as "
        "in the released code; apart: each view's own.",
    )


def forward_views(network: Network, views: Sequence[Tensor], statistics: str) -> list[Tensor]:
    """Logits (B, C) of each of the views (B, 3, H, W), by `ViewParams.view_statistics`."""
    if statistics == "apart":
        return [network(view) for view in views]
    return list(network(torch.cat(list(views))).split([len(view) for view in views]))


class SingleNetworkMethod(method.Method, Generic[P]):
    """A method that trains one network and predicts with it."""

    params: P

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params
        self.make_network = network  # for phases that start from a fresh one
        self.network = network()

    def optimizers(
        self, training: TrainHyperparameters, *, scale: float = 1.0, schedule: Callable[[float], float] | None = None
    ) -> Optimizers:
        """The training's SGD over the network.

        Args:
            training: the training's hyperparameters.
            scale: learning rate as a multiple of the training's.
            schedule: of the learning rate over the phase; the training's own by default.
        """
        return Optimizers((training.sgd(self.network.parameters(), scale=scale),), schedule or training.factor)

    def predict_batch(self, batch: Batch) -> Tensor:
        """Logits (B, C) of the batch's images with a graph, which also rank the given labels."""
        logits: Tensor = self.network(batch.images)
        batch.record_logits(logits)
        return logits

    def cross_entropy_step(self, batch: Batch) -> Tensor:
        """The loss of a plain step: mean cross-entropy on the given labels, a scalar."""
        logits = self.predict_batch(batch)
        return batch.label_loss(lambda labels, _: losses.cross_entropy(logits, labels))

    def mixup_step(self, batch: Batch, alpha: float) -> Tensor:
        """The loss of a MixUp step, a scalar: cross-entropy of mixed images with mixed labels (Zhang et al., Eq. 1).

        Labels are ranked by the mixture in which an image has the larger share, as no image is unmixed.

        Args:
            batch: of the step.
            alpha: of λ ~ Beta(alpha, alpha), one for the batch.
        """
        share, partner = mixup.draw_mixing(alpha, batch.index, batch.generator(mixup.MIXING))
        logits = self.network(mixup.mix(batch.images, share, partner))
        batch.record_logits(logits[mixup.dominant_rows(share, partner)])
        label_targets = losses.one_hot(batch.labels, self.network.class_count)
        return losses.soft_cross_entropy(logits, mixup.mix(label_targets, share, partner))

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits: what a method learns about labels is no part of the prediction."""
        logits: Tensor = self.network(images)
        return logits
