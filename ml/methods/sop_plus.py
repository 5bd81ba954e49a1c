"""SOP+: sparse over-parameterisation with consistency between a weak and a strong view, and class balance.

Liu, Zhu, Qu, You, ICML 2022, sections 2 and 4, as the released code computes it: both views pass the network as one
batch, whose statistics normalise both (`view_statistics`); u and v explain the prediction for the weak one, and the
divergence from it trains the strong one's prediction alone. The strong view is that of `ml.data.autoaugment`. The
released code normalises its pixels on CIFAR-100 by the statistics of CIFAR-10; here they are the weak view's.

Published: PreAct ResNet-18, SGD 0.02 with weight decay 5e-4 (released for CIFAR-100: 1e-3), cosine to 2e-4 over 300
epochs, batches of 128; all images are trained on.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from ml.blocks import losses, overparameterization, single_network
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import About

PUBLISHED = {
    "network": "preact_resnet18",
    "epochs": 300,
    "batch_size": 128,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "schedule_unit": "epoch",
    "floor": 0.01,
    "validation_fraction": 0.0,
}

ABOUT: About = {
    "title": "SOP+",
    "paper": "Liu et al.: Robust Training under Label Noise by Over-parameterization (ICML 2022)",
    "idea": "SOP, whose network must also predict a strongly augmented view of an image as it predicts the weak one. "
    "And it must predict all classes about equally often, so that no class attracts all uncertain images.",
    "relative_cost": 2.0,
    "needs": [],
    "presets": {
        "cifar10": {"u_learning_rate": 10.0, "v_learning_rate": 10.0},
        "cifar100 symmetric": {"u_learning_rate": 1.0, "v_learning_rate": 10.0},
        "cifar100 asymmetric": {"u_learning_rate": 0.1, "v_learning_rate": 100.0},
        "cifar100 asymmetric, paper": {"u_learning_rate": 1.0, "v_learning_rate": 100.0, "detach_u_in_mse": True},
    },
    "training": {"cifar10": {**PUBLISHED, "weight_decay": 5e-4}, "cifar100 *": {**PUBLISHED, "weight_decay": 1e-3}},
}


class Params(overparameterization.OverparameterizationParams, single_network.ViewParams):
    """Parameters of SOP+."""

    consistency: float = Field(default=0.9, ge=0.0, le=100.0, description="Weight of predicting both views alike.")
    balance: float = Field(
        default=0.1, ge=0.0, le=100.0, description="Weight of predicting all classes equally often in a batch."
    )


class Method(overparameterization.OverparameterizedMethod[Params]):
    """SOP, consistency and balance."""

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        return [
            Phase(
                training.epochs,
                self._loss,
                lambda: self.network_and_variables(training),
                before_step=self.rescale_gradients,
                views=("weak", "strong"),
            )
        ]

    def _loss(self, batch: Batch) -> Tensor:
        """L_CE + L_MSE + λ_C · L_C + λ_B · L_B."""
        weak, strong = single_network.forward_views(self.network, batch.views, self.params.view_statistics)
        batch.record_logits(weak)

        def loss(labels: Tensor, index: Tensor) -> Tensor:
            terms = self.loss_terms(weak, labels, index)
            balance = overparameterization.class_balance_loss(terms.probabilities)
            return terms.cross_entropy + terms.squared_error + self.params.balance * balance

        return batch.label_loss(loss) + self.params.consistency * losses.consistency_kl(weak, strong)
