"""Two networks that learn side by side and set aside what they find implausible: their settings and their answer.

What Co-teaching and JoCoR share; how the two select for each other, they say. Shapes: `B` batch, `C` classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ml.blocks import optimizers, selection
from ml.phase import Optimizers, Recipe


class SelectionParams(BaseModel):
    """How much is set aside, and who learns the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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


def forget_rate(params: SelectionParams, epoch: int, epochs: int) -> float:
    """The share of each batch set aside in one epoch, counted from 0."""
    return selection.forget_rate(epoch, params.noise_rate * params.forgotten, max(1, round(params.gradual * epochs)))


def build_optimizers(params: SelectionParams, training: Recipe, parameters: Iterable[nn.Parameter]) -> Optimizers:
    """One optimizer over both networks: where their losses share no weight it does what two would."""
    if params.optimizer == "sgd":
        return Optimizers((training.sgd(parameters),), training.factor)
    return Optimizers((optimizers.adam(parameters, params.adam_rate),), training.factor)


def mean(logits: Sequence[Tensor]) -> Tensor:
    """Logits whose softmax is the mean of the members' softmax; one member passes unchanged."""
    if len(logits) == 1:
        return logits[0]
    together = torch.stack([each.float().softmax(dim=1) for each in logits]).mean(dim=0)
    return together.clamp(min=1e-30).log()


def heads(logits: Sequence[Tensor]) -> dict[str, Tensor]:
    """`g1`, `g2` and their `mean`, which is the answer; of one network the `answer` alone."""
    if len(logits) == 1:
        return {"answer": logits[0]}
    together = mean(logits)
    return {"answer": together, "g1": logits[0], "g2": logits[1], "mean": together}
