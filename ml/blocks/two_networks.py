"""Two networks that learn side by side and set aside what they find implausible.

What Co-teaching and JoCoR share; how the two select for each other, they say. Shapes: `B` batch, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml import method
from ml.blocks import optimizers, small_loss
from ml.method import ENSEMBLE, Batch, MethodParams, Network, Optimizers, Phase, TrainHyperparameters


class SmallLossParams(MethodParams):
    """How much is set aside, and who learns the rest."""

    noise_rate: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="Share of wrong labels, as well as it is known: so much of each batch is set aside. 0.2 is a "
        "guess that suits labels made by people.",
    )
    forgotten: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Set aside only this share of the noise rate: a half is advised for asymmetric noise.",
    )
    gradual: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which the share set aside grows from 0; the first epoch sets none aside.",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="adam, as published, at adam_rate; sgd: the training's own learning rate."
    )
    adam_rate: float = Field(
        default=1e-3, gt=0.0, le=1.0, description="Adam's learning rate, which follows the training's schedule."
    )


P = TypeVar("P", bound=SmallLossParams)


class TwoNetworkMethod(method.Method, Generic[P]):
    """A method that trains two networks in one phase, on what they select of each batch."""

    params: P

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        super().__init__(params, labels, network)
        self.params = params
        self.networks = nn.ModuleList([network(), network()])

    def selected(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """The loss, a scalar, of both networks' logits (B, C) and labels (B,) when the share `rate` is set aside."""
        raise TypeError(f"{type(self).__name__} selects nothing")

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""

        def loss(batch: Batch) -> Tensor:
            one, two = (network(batch.images) for network in self.networks)
            batch.record_logits(mean_probability_logits([one, two]))
            return self.selected(one, two, batch.labels, forget_rate(self.params, batch.epoch, training.epochs))

        def optimizers() -> Optimizers:
            return build_optimizers(self.params, training, self.parameters())

        return [Phase(training.epochs, loss, optimizers)]

    def logits(self, images: Tensor) -> Tensor:
        """The logarithm of both networks' mean probabilities."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """`g1`, `g2` and their `mean`, which is the answer."""
        return mean_probability_heads([network(images).float() for network in self.networks])


def forget_rate(params: SmallLossParams, epoch: int, epochs: int) -> float:
    """The share of each batch set aside in one epoch, counted from 0."""
    return small_loss.forget_rate(epoch, params.noise_rate * params.forgotten, max(1, round(params.gradual * epochs)))


def build_optimizers(
    params: SmallLossParams, training: TrainHyperparameters, parameters: Iterable[nn.Parameter]
) -> Optimizers:
    """One optimizer over both networks: where their losses share no weight it does what two would."""
    if params.optimizer == "sgd":
        return Optimizers((training.sgd(parameters),), training.factor)
    return Optimizers((optimizers.adam(parameters, params.adam_rate),), training.factor)


def mean_probability_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the members' softmax; one member passes unchanged."""
    if len(logits) == 1:
        return logits[0]
    together = torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)
    return together.clamp(min=1e-30).log()


def mean_probability_heads(logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """`g1`, `g2` and their `mean`, which is the answer; of one network the `answer` alone."""
    if len(logits) == 1:
        return {ENSEMBLE: logits[0]}
    together = mean_probability_logits(logits)
    return {ENSEMBLE: together, "g1": logits[0], "g2": logits[1], "mean": together}
