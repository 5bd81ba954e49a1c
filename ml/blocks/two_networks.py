"""Methods with two networks: how two predictions become one, and the common base of Co-teaching and JoCoR.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ml import method
from ml.blocks import optimizers, side_by_side, small_loss
from ml.method import ENSEMBLE, Batch, MethodParams, Network, Optimizers, Phase, TrainHyperparameters


class SmallLossParams(MethodParams):
    """The share of each batch that is left out, and the optimizer."""

    noise_rate: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="Share of wrong labels, as well as it is known: this share of each batch is left out. 0.2 is a "
        "guess that suits labels made by people.",
    )
    forgotten: float = Field(
        default=1.0,
        ge=0.0,
        le=1.0,
        description="Leave out only this share of the noise rate: a half is advised for asymmetric noise.",
    )
    gradual: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which the share left out grows from 0; the first epoch leaves out none.",
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="adam, as published, at adam_rate; sgd: the training's own learning rate."
    )
    adam_rate: float = Field(
        default=1e-3, gt=0.0, le=1.0, description="Adam's learning rate, which follows the training's schedule."
    )


P = TypeVar("P", bound=SmallLossParams)


class TwoNetworkMethod(method.Method, Generic[P]):
    """A method that trains two networks side by side in one phase, on a small-loss selection of each batch."""

    params: P

    def __init__(self, params: P, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build both networks; arguments as of `ml.method.Method`."""
        super().__init__(params, labels, network)
        self.params = params
        self.networks = nn.ModuleList([network(), network()])

    def selected_loss(self, one: Tensor, two: Tensor, labels: Tensor, rate: float) -> Tensor:
        """The loss of both networks on what is selected: a scalar.

        Args:
            one: logits of the first network, (B, C).
            two: logits of the second network, (B, C).
            labels: given labels int64 (B,).
            rate: share of the batch that is left out.
        """
        raise TypeError(f"{type(self).__name__} defines no selection")

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """One phase over all epochs."""

        def loss(batch: Batch) -> Tensor:
            one, two = side_by_side.forward(self.networks, batch.images)
            batch.record_logits(mean_probability_logits([one, two]))
            rate = batch.of_epoch(lambda epoch: forget_rate(self.params, epoch, training.epochs))
            return batch.label_loss(lambda labels, _: self.selected_loss(one, two, labels, rate))

        def optimizers() -> Optimizers:
            return build_optimizers(self.params, training, self.parameters())

        return [Phase(training.epochs, loss, optimizers)]

    def logits(self, images: Tensor) -> Tensor:
        """The logarithm of both networks' mean probabilities, (B, C)."""
        return self.heads(images)[ENSEMBLE]

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) by name: as `mean_probability_heads`."""
        return mean_probability_heads([network(images).float() for network in self.networks])


def forget_rate(params: SmallLossParams, epoch: int, epochs: int) -> float:
    """The share of each batch that is left out in epoch `epoch`, from 0, of `epochs`."""
    return small_loss.forget_rate(epoch, params.noise_rate * params.forgotten, max(1, round(params.gradual * epochs)))


def build_optimizers(
    params: SmallLossParams, training: TrainHyperparameters, parameters: Iterable[nn.Parameter]
) -> Optimizers:
    """One optimizer over the parameters of both networks: as they share no weight, it does what two would."""
    if params.optimizer == "sgd":
        return Optimizers((training.sgd(parameters),), training.factor)
    return Optimizers((optimizers.adam(parameters, params.adam_rate),), training.factor)


def mean_probability_logits(logits: Sequence[Tensor]) -> Tensor:
    """Logits (B, C) whose softmax is the mean softmax of the given ones; those of one network stay as they are."""
    if len(logits) == 1:
        return logits[0]
    probabilities = torch.stack([one.float().softmax(dim=1) for one in logits]).mean(dim=0)
    return probabilities.clamp(min=1e-30).log()


def mean_probability_heads(logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """Heads of one or two networks by their logits (B, C).

    Returns:
        Of two networks `g1`, `g2` and `mean`, which is the ensemble; of one network the ensemble alone.
    """
    if len(logits) == 1:
        return {ENSEMBLE: logits[0]}
    mean = mean_probability_logits(logits)
    return {ENSEMBLE: mean, "g1": logits[0], "g2": logits[1], "mean": mean}


def mean_logit_heads(one: Tensor, two: Tensor) -> dict[str, Tensor]:
    """Heads `g1`, `g2` and the mean of their logits (B, C) as the ensemble."""
    return {ENSEMBLE: 0.5 * (one + two), "g1": one, "g2": two}
