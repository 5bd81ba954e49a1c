"""ELR: early-learning regularisation. Right labels are learned first; each answer is held to its own running average.

Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, Eq. 6 and Algorithm 1, in the order of the released code: an
average takes the new answer in before it is held against it. The averages start at 0, so at first nothing is held.

Published: ResNet-34, SGD 0.02 with weight decay 1e-3, batches of 128, a tenth held out. CIFAR-10 symmetric: 150 epochs,
cosine restarts every 10; asymmetric: 120 epochs, times 0.01 at 40 and 80. CIFAR-100: 150, times 0.01 at 80 and 120.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ml.blocks import early_learning, losses, prediction_history, single_network
from ml.method import Batch, Network, Phase, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "ELR",
    "paper": "Liu et al.: Early-Learning Regularization Prevents Memorization of Noisy Labels (NeurIPS 2020)",
    "idea": "Early in training a network answers right even where the label is wrong. Every answer is pulled towards "
    "the average of the earlier ones, which outweighs a wrong label's pull.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10 symmetric": {"target_kept": 0.7, "weight": 3.0},
        "cifar10 asymmetric": {"target_kept": 0.9, "weight": 1.0},
        "cifar100": {"target_kept": 0.9, "weight": 7.0},
    },
}


class Params(early_learning.EarlyLearningParams):
    """Settings of ELR."""


class Method(single_network.SingleNetworkMethod[Params]):
    """One network and one remembered answer for each sample."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.memory = prediction_history.PredictionEma(len(labels), self.network.class_count, params.target_kept)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        return [Phase(training.epochs, self._loss, lambda: self.optimizers(training))]

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.network(batch.images)
        batch.record_logits(logits)
        p = early_learning.clipped_softmax(logits)
        targets = self.memory.update(batch.index, p / p.sum(dim=1, keepdim=True))
        held = early_learning.regularization(p, targets)
        return losses.cross_entropy(logits, batch.labels) + self.params.weight * held
