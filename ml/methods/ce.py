"""Cross-entropy on the given labels: the reference, and with two networks the control of DeNLL with the same compute.

One network; two networks whose probabilities are averaged; or such a pair with an agreement term (mutual learning).

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ml import method
from ml.blocks import losses, mutual_learning, side_by_side, two_networks
from ml.method import ENSEMBLE
from ml.methods import About

ABOUT: About = {
    "title": "Cross-entropy",
    "paper": "",
    "idea": "Plain training on the labels as given. With two networks it is the control for every method that has two.",
    "relative_cost": 1.0,
    "needs": [],
    "presets": {
        "one network": {},
        "pair": {"networks": 2},
        "pair with agreement": {"networks": 2, "agreement": "both"},
    },
}


class Params(mutual_learning.AgreementParams):
    """Parameters of cross-entropy."""

    networks: Literal[1, 2] = Field(
        default=1, description="Networks trained side by side; two predict with their mean probabilities."
    )

    @model_validator(mode="after")
    def _agreement_needs_two(self) -> Self:
        if self.agreement != "off" and self.networks == 1:
            raise ValueError("agreement needs networks = 2")
        return self


class Method(method.Method):
    """One or two networks, each with its own cross-entropy."""

    def __init__(self, params: Params, labels: Tensor, network: Callable[[], method.Network]) -> None:
        """Build the networks; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params
        self.networks = nn.ModuleList(network() for _ in range(params.networks))

    def phases(self, training: method.TrainHyperparameters) -> Sequence[method.Phase]:
        """One phase over all epochs."""

        def loss(batch: method.Batch) -> Tensor:
            logits = side_by_side.forward(self.networks, batch.images)
            batch.record_logits(two_networks.mean_probability_logits(logits))
            total = batch.label_loss(
                lambda labels, _: torch.stack([losses.cross_entropy(one, labels) for one in logits]).sum()
            )
            weight = batch.of_epoch(lambda epoch: mutual_learning.agreement_weight(self.params, epoch, training.epochs))
            if weight > 0.0:
                total = total + weight * mutual_learning.agreement_loss(self.params.agreement, logits[0], logits[1])
            return total

        def optimizers() -> method.Optimizers:
            return method.Optimizers((training.sgd(self.parameters()),), training.factor)

        return [method.Phase(training.epochs, loss, optimizers)]

    def logits(self, images: Tensor) -> Tensor:
        """The network's logits (B, C); of a pair the logarithm of its mean probabilities."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) by name: as `two_networks.mean_probability_heads`."""
        return two_networks.mean_probability_heads([network(images).float() for network in self.networks])
