"""SOP: sparse over-parameterisation. Each sample has variables that explain a wrong label, so the network need not.

Liu, Zhu, Qu, You, ICML 2022, Eq. 5 and 6, as the released code computes them. The variables are learned by gradient
descent at constant rates of their own, and are not part of the prediction.

Published: ResNet-34, SGD 0.02 with weight decay 5e-4, times 0.1 at 40 and 80 of 120 epochs (CIFAR-100: of 150), batches
of 128; all images are trained on. Clothing1M: ResNet-50, 0.002 and 1e-3, times 0.1 at 5 of 10, batches of 64.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ml.blocks import overparameterization
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import About

PUBLISHED = {
    "network": "resnet34",
    "batch_size": 128,
    "learning_rate": 0.02,
    "weight_decay": 5e-4,
    "schedule": "multistep",
    "schedule_unit": "epoch",
    "validation_fraction": 0.0,
}

ABOUT: About = {
    "title": "SOP",
    "paper": "Liu et al.: Robust Training under Label Noise by Over-parameterization (ICML 2022)",
    "idea": "Every image has error variables of its own. Where a label contradicts the rest of the set they explain "
    "it, and the network learns what remains.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "cifar10": {"u_learning_rate": 10.0, "v_learning_rate": 10.0},
        "cifar100": {"u_learning_rate": 1.0, "v_learning_rate": 10.0},
        "clothing1m": {"u_learning_rate": 0.1, "v_learning_rate": 1.0},
    },
    "training": {
        "cifar10": {**PUBLISHED, "epochs": 120, "milestones": (1 / 3, 2 / 3)},
        "cifar100": {**PUBLISHED, "epochs": 150, "milestones": (40 / 150, 80 / 150)},
    },
}


class Params(overparameterization.OverparameterizationParams):
    """Parameters of SOP."""


class Method(overparameterization.OverparameterizedMethod[Params]):
    """Eq. 5 and 6."""

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        optimizers = partial(self.network_and_variables, training)
        return [Phase(training.epochs, self._loss, optimizers, before_step=self.rescale_gradients)]

    def _loss(self, batch: Batch) -> Tensor:
        """L_CE (Eq. 5) + L_MSE (Eq. 6)."""
        logits = self.predict_batch(batch)

        def loss(labels: Tensor, index: Tensor) -> Tensor:
            terms = self.loss_terms(logits, labels, index)
            return terms.cross_entropy + terms.squared_error

        return batch.label_loss(loss)
