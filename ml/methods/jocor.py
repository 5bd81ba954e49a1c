"""JoCoR: two networks learn jointly from images with a small joint loss, which contains their disagreement.

Wei et al., CVPR 2020. Every image has one loss, (1 - λ) times both cross-entropies plus λ times both divergences
between the two predictions (Eq. 1-4). In every step one optimizer trains both networks on the share 1 - R(t) of the
batch with the smallest loss (Eq. 5). R(t) grows from 0 to the noise rate over the first epochs (10 of 200); for
asymmetric noise the paper leaves out only half of the rate.

Gradients flow through both sides of each divergence. Adam runs at its own rate through the training's schedule, with β1
0.9 throughout (released: 0.1 from epoch 80 on); with SGD the small weight 1 - λ of the cross-entropies slows learning
tenfold. The paper reports both networks' mean accuracy over the last ten epochs; here their mean probabilities are the
prediction.

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
    "idea": "Two networks that are pulled to agree rarely agree on a wrong label. They learn jointly from the images "
    "with the smallest loss and disagreement.",
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
    """Parameters of JoCoR."""

    agreement: float = Field(
        default=0.9, ge=0.0, lt=1.0, description="λ: weight of the agreement; the cross-entropies have weight 1 - λ."
    )


class Method(two_networks.TwoNetworkMethod[Params]):
    """Algorithm 1."""

    def selected_loss(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Eq. 5: the mean joint loss of the selected images; see `TwoNetworkMethod.selected_loss`."""
        joint = joint_losses(one, two, labels, self.params.agreement)
        return joint[small_loss.smallest_losses(joint, rate)].mean()


def joint_losses(one: Tensor, two: Tensor, labels: Tensor, agreement: float) -> Tensor:
    """Eq. 1-4: the joint loss of every image, (B,).

    Args:
        one: logits of the first network, (B, C).
        two: logits of the second network, (B, C).
        labels: given labels int64 (B,).
        agreement: λ.
    """
    supervised = losses.cross_entropies(one, labels) + losses.cross_entropies(two, labels)
    return (1.0 - agreement) * supervised + agreement * losses.symmetric_kls(one, two)
