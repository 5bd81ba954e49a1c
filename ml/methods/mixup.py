"""MixUp: a network learns from convex combinations of pairs of images and of their labels, and so memorises none.

Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, Eq. 1. One λ ~ Beta(α, α) and one permutation for each batch, which is
mixed after augmentation. Labels are ranked by the mixture in which an image has the larger share, as no image is
unmixed.

Published: PreAct ResNet-18, SGD 0.1 with weight decay 1e-4, times 0.1 at 1/2 and 3/4 of 200 epochs, batches of 128.

Shapes: `B` batch, `C` classes, logits and targets (B, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from ml.blocks import single_network
from ml.method import MethodParams, Phase, TrainHyperparameters
from ml.methods import About

ABOUT: About = {
    "title": "MixUp",
    "paper": "Zhang et al.: mixup: Beyond Empirical Risk Minimization (ICLR 2018)",
    "idea": "Every image is mixed with another one, and so are their labels. A wrong label is then never seen alone "
    "and is harder to memorise.",
    "relative_cost": 1.0,
    "mixes": True,
    "needs": [],
    "presets": {"default": {}, "noisy labels": {"alpha": 32.0}},
    "training": {
        "*": {
            "network": "preact_resnet18",
            "epochs": 200,
            "batch_size": 128,
            "learning_rate": 0.1,
            "weight_decay": 1e-4,
            "schedule": "multistep",
            "schedule_unit": "epoch",
            "milestones": (0.5, 0.75),
            "validation_fraction": 0.0,
        }
    },
}


class Params(MethodParams):
    """Parameters of MixUp."""

    alpha: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Parameter of the Beta distribution of the mixing ratio: 1 is uniform, large values mix half and "
        "half. Noisy labels need 8 to 32.",
    )


class Method(single_network.SingleNetworkMethod[Params]):
    """One network, on mixtures alone."""

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""
        loss = partial(self.mixup_step, alpha=self.params.alpha)
        return [Phase(training.epochs, loss, lambda: self.optimizers(training))]
