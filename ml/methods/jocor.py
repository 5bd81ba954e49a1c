"""JoCoR: two networks learn as one, from images whose label both find plausible and on which they agree.

Wei et al., CVPR 2020, Eq. 1-5. Every image has one loss, (1 - λ) times both cross-entropies plus λ times both
divergences between the two answers; of each batch the share 1 - R(t) with the smallest loss is learned from, by one
optimizer. R(t) grows from 0 to the noise rate over the first epochs (10 of 200); for asymmetric noise the paper sets
only half of the rate aside.

Gradients flow through both sides of each divergence. Adam runs at its own rate through the spec's schedule, β1 0.9
throughout (released: 0.1 from epoch 80 on); by SGD the cross-entropies' small weight 1 - λ slows learning tenfold. The
paper reports both networks' mean accuracy over the last ten epochs; here their mean probabilities are the answer.

Published: six convolutions, no augmentation, batches of 128, 200 epochs, Adam 1e-3 without weight decay, from epoch 80
falling linearly to 0; noise rate known. λ was tuned for it: residual networks are advised to try 0.5 to 0.9.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from ml.blocks import losses, small_loss, two_networks
from ml.methods import About

ABOUT: About = {
    "title": "JoCoR",
    "paper": "Wei et al.: Combating Noisy Labels by Agreement: A Joint Training Method with Co-Regularization (CVPR "
    "2020)",
    "idea": "Two networks that are pulled to agree rarely agree on a wrong label. They learn together from the images "
    "on which both are at ease.",
    "relative_cost": 2.0,
    "needs": ["noise rate"],
    "presets": {
        "cifar10 symmetric 20 %": {"noise_rate": 0.2},
        "cifar10 symmetric 50 %": {"noise_rate": 0.5},
        "cifar10 symmetric 80 %": {"noise_rate": 0.8, "agreement": 0.65},
        "cifar10 asymmetric 40 %": {"noise_rate": 0.4, "forgotten": 0.5},
        "cifar100 symmetric 20 %": {"noise_rate": 0.2, "agreement": 0.85},
        "cifar100 symmetric 50 %": {"noise_rate": 0.5, "agreement": 0.85},
        "cifar100 symmetric 80 %": {"noise_rate": 0.8, "agreement": 0.85},
        "cifar100 asymmetric 40 %": {"noise_rate": 0.4, "forgotten": 0.5, "agreement": 0.85},
    },
}


class Params(two_networks.SmallLossParams):
    """Settings of JoCoR."""

    agreement: float = Field(
        default=0.9, ge=0.0, lt=1.0, description="λ: weight of agreeing, against that of the given label."
    )


class Method(two_networks.TwoNetworkMethod[Params]):
    """Algorithm 1."""

    def selected(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """The mean joint loss of what both find plausible."""
        each = joint(one, two, labels, self.params.agreement)
        return each[small_loss.smallest_losses(each, rate)].mean()


def joint(one: Tensor, two: Tensor, labels: Tensor, agreement: float) -> Tensor:
    """Eq. 1-4 of every image, (B,), for both networks' logits (B, C)."""
    supervised = losses.cross_entropies(one, labels) + losses.cross_entropies(two, labels)
    return (1.0 - agreement) * supervised + agreement * losses.symmetric_kls(one, two)
