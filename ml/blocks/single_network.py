"""What every method with one network begins with: that network, how it answers, and plain training of it.

What is learned beyond that, the methods say. Shapes: `B` batch, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pydantic import BaseModel
from torch import Tensor

from ml import method
from ml.blocks import losses
from ml.method import Batch, Network, Optimizers, TrainHyperparameters

P = TypeVar("P", bound=BaseModel)


class SingleNetworkMethod(method.Method, Generic[P]):
    """A method that trains one network and answers with it."""

    params: P

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.params = params
        self.make = network  # another one, freshly initialised, whose state the network may take over
        self.network = network()

    def optimizers(self, training: TrainHyperparameters) -> Optimizers:
        """SGD over everything that learns, on the spec's schedule."""
        return Optimizers((training.sgd(self.parameters()),), training.factor)

    def plain(self, batch: Batch) -> Tensor:
        """Cross-entropy on the given labels, which are ranked by its logits: a scalar."""
        logits = self.network(batch.images)
        batch.record_logits(logits)
        return losses.cross_entropy(logits, batch.labels)

    def logits(self, images: Tensor) -> Tensor:
        """The network's own: nothing that a method learns of labels is part of its answer."""
        logits: Tensor = self.network(images)
        return logits
