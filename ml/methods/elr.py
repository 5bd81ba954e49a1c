"""ELR: early-learning regularisation. Clean labels are learned first; predictions are held to their running average.

Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, Eq. 6 and Algorithm 1. In the order of the released code: the
average is updated before the prediction is compared with it. The averages start at 0, so at first they have no effect.

Published: ResNet-34, SGD 0.02 with weight decay 1e-3, batches of 128, a tenth held out. CIFAR-10 symmetric: 150 epochs,
cosine restarts every 10; asymmetric: 120 epochs, times 0.01 at 40 and 80. CIFAR-100: 150, times 0.01 at 80 and 120.

Shapes: `N` samples, `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ml.blocks import early_learning, losses, prediction_history, single_network
from ml.method import Batch, Network, Phase, TrainHyperparameters
from ml.methods import About

PUBLISHED = {
    "network": "resnet34",
    "batch_size": 128,
    "learning_rate": 0.02,
    "weight_decay": 1e-3,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "decay": 0.01,
    "validation_fraction": 0.1,
}

ABOUT: About = {
    "title": "ELR",
    "paper": "Liu et al.: Early-Learning Regularization Prevents Memorization of Noisy Labels (NeurIPS 2020)",
    "idea": "Early in training a network predicts the right class even where the label is wrong. Every prediction is "
    "pulled towards the average of earlier ones, which outweighs the pull of a wrong label.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10 symmetric": {"target_kept": 0.7, "weight": 3.0},
        "cifar10 asymmetric": {"target_kept": 0.9, "weight": 1.0},
        "cifar100": {"target_kept": 0.9, "weight": 7.0},
    },
    "training": {  # not for symmetric noise: there is no schedule with restarts
        "cifar10 asymmetric": {**PUBLISHED, "epochs": 120, "milestones": (1 / 3, 2 / 3)},
        "cifar100": {**PUBLISHED, "epochs": 150, "milestones": (80 / 150, 120 / 150)},
    },
}


class Params(early_learning.EarlyLearningParams):
    """Parameters of ELR."""


class Method(single_network.SingleNetworkMethod[Params]):
    """One network and the running average of every sample's predictions."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the network; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.memory = prediction_history.PredictionEma(len(labels), self.network.class_count, params.target_kept)

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        return [Phase(training.epochs, self._loss, lambda: self.optimizers(training))]

    def _loss(self, batch: Batch) -> Tensor:
        """Eq. 6: L_CE + weight · mean log(1 - ⟨t, p⟩)."""
        logits = self.predict_batch(batch)
        p = early_learning.clipped_softmax(logits)
        targets = self.memory.update(batch.index, p / p.sum(dim=1, keepdim=True))
        regularization = early_learning.regularization(p, targets)
        supervised = batch.label_loss(lambda labels, _: losses.cross_entropy(logits, labels))
        return supervised + self.params.weight * regularization
