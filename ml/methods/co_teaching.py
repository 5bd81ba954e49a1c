"""Co-teaching: each of two networks learns from the images whose label the other one finds plausible.

Han et al., NeurIPS 2018, Algorithm 1. Of every batch each network chooses the share 1 - R(t) with its smallest losses,
and the other one learns from them. R(t) grows from 0 to the noise rate over the first epochs (10 of 200).

The mean over the chosen is the loss (the released code divides it once more by their number, which only SGD would
notice). Adam runs at its own rate through the spec's schedule, β1 0.9 throughout (released: 0.1 from epoch 80 on). A
last smaller batch counts too. The paper reports both networks' mean accuracy over the last ten epochs; here their mean
probabilities are the answer, and each has a head.

Published: nine convolutions with dropout, no augmentation, batches of 128, 200 epochs, Adam 1e-3 without weight decay,
from epoch 80 (CIFAR-10) or 100 (CIFAR-100) falling linearly to 0; noise rate known.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from torch import Tensor

from ml.blocks import losses, small_loss, two_networks
from ml.methods import About

ABOUT: About = {
    "title": "Co-teaching",
    "paper": "Han et al.: Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels (NeurIPS "
    "2018)",
    "idea": "Labels that are easily learned are mostly right. Two networks choose them for each other, so that neither "
    "believes its own mistakes.",
    "relative_cost": 2.0,
    "needs": ["noise rate"],
    "presets": {
        "20 % noise": {"noise_rate": 0.2},
        "40 % noise": {"noise_rate": 0.4},
        "pairflip 45 %": {"noise_rate": 0.45},
        "50 % noise": {"noise_rate": 0.5},
        "training's sgd": {"optimizer": "sgd"},
    },
}


class Params(two_networks.SmallLossParams):
    """Settings of Co-teaching."""


class Method(two_networks.TwoNetworkMethod[Params]):
    """Algorithm 1."""

    def selected(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Each network's loss on what the other one chose."""
        return crossed(losses.cross_entropies(one, labels), losses.cross_entropies(two, labels), rate)


def crossed(one: Tensor, two: Tensor, rate: float) -> Tensor:
    """Each network's losses (B,) over what the other one's smallest say is plausible: the sum of two means."""
    return one[small_loss.smallest_losses(two, rate)].mean() + two[small_loss.smallest_losses(one, rate)].mean()
