"""Co-teaching: each of two networks selects the images from which the other one learns.

Han et al., NeurIPS 2018, Algorithm 1. In every step each network selects the share 1 - R(t) of the batch with its
smallest losses, and the other one learns from them. R(t) grows from 0 to the noise rate over the first epochs (10 of
200).

The loss is the mean over the selected images (the released code divides it once more by their number, which makes a
difference for SGD only). Adam runs at its own rate through the training's schedule, with β1 0.9 throughout (released:
0.1 from epoch 80 on). A last smaller batch counts too. The paper reports both networks' mean accuracy over the last ten
epochs; here their mean probabilities are the prediction, and each has a head.

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
    "idea": "Labels with a small loss are mostly right. Two networks select them for each other, so that neither "
    "confirms its own mistakes.",
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
    """Parameters of Co-teaching."""


class Method(two_networks.TwoNetworkMethod[Params]):
    """Algorithm 1."""

    def selected_loss(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Each network's loss on the images that the other one selects; see `TwoNetworkMethod.selected_loss`."""
        return cross_selected_loss(losses.cross_entropies(one, labels), losses.cross_entropies(two, labels), rate)


def cross_selected_loss(one: Tensor, two: Tensor, rate: float) -> Tensor:
    """Sum of the two networks' mean losses on what the other one selects: a scalar.

    Args:
        one: losses of the first network, (B,).
        two: losses of the second network, (B,).
        rate: R(t), share of the batch that is left out.
    """
    return one[small_loss.smallest_losses(two, rate)].mean() + two[small_loss.smallest_losses(one, rate)].mean()
