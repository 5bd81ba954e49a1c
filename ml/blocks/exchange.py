"""The exchange between two networks: how strongly, in which direction and from when they are pulled to agree.

Both directions repair random wrong labels and harden systematic ones; one way, the first network learns from the
second and the second stays untouched. It knows no network, only logits `(B, C)`, and no class background.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ml.blocks import losses

ROUNDING = 1e-9  # 0.7 * 10 is 7.000000000000001


class AgreementParams(BaseModel):
    """The settings of the agreement term, shared by every method that has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    agreement: Literal["off", "both", "one_way"] = Field(
        default="off",
        description="both: the two networks are pulled towards each other; one_way: the first learns from the second.",
    )
    agreement_weight: float = Field(
        default=3.0, ge=0.0, le=100.0, description="Weight of the agreement term once it is fully on."
    )
    agreement_start: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Share of the epochs without agreement.",
    )
    agreement_ramp: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Share of the epochs over which the weight grows from 0 to its full value.",
    )


def weight(params: AgreementParams, epoch: int, epochs: int) -> float:
    """The weight of the agreement term in one epoch (counted from 0): the same in all its steps."""
    if params.agreement == "off":
        return 0.0
    # rounded up: a short training, too, has a plain epoch, unless it is told to start at 0
    start = math.ceil(params.agreement_start * epochs - ROUNDING)
    length = round(params.agreement_ramp * epochs)
    # epoch + 1: the first epoch of a ramp already has some weight, or it would be one more plain epoch
    return params.agreement_weight * min(1.0, max(0.0, (epoch + 1 - start) / max(length, 1)))


def agreement(direction: str, first: Tensor, second: Tensor) -> Tensor:
    """The unweighted agreement term of two logits (B, C): a scalar, `one_way` without gradient into `second`."""
    return losses.symmetric_kl(first, second.detach() if direction == "one_way" else second)
