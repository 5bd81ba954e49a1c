"""The exchange between two networks: how strongly, in which direction and from when they are pulled to agree.

Both directions repair random wrong labels and harden systematic ones; one way, the first network learns from the
second and the second stays untouched. It knows no network, only logits `(B, C)`, and no class background.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.blocks import losses
from ml.method import MethodParams

ROUNDING = 1e-9  # 0.7 * 10 is 7.000000000000001
MOST_CLIPPED = 0.5  # of the steps of its first epoch: trainings that collapsed had 0.67 and more, others up to 0.43

log = logging.getLogger(__name__)


class AgreementParams(MethodParams):
    """The settings of the agreement term, shared by every method that has one."""

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


def agreement_weight(params: AgreementParams, epoch: int, epochs: int) -> float:
    """The weight of the agreement term in one epoch (counted from 0): the same in all its steps."""
    if params.agreement == "off":
        return 0.0
    # rounded up: a short training, too, has a plain epoch, unless it is told to start at 0
    start = math.ceil(params.agreement_start * epochs - ROUNDING)
    length = round(params.agreement_ramp * epochs)
    # epoch + 1: the first epoch of a ramp already has some weight, or it would be one more plain epoch
    return params.agreement_weight * min(1.0, max(0.0, (epoch + 1 - start) / max(length, 1)))


def agreement_loss(direction: str, first: Tensor, second: Tensor) -> Tensor:
    """The unweighted agreement term of two logits (B, C): a scalar, `one_way` without gradient into `second`."""
    return losses.symmetric_kl(first, second.detach() if direction == "one_way" else second)


class AgreementDamping(nn.Module):
    """Halves an exchange that begins badly: with gradients that have to be clipped.

    Pulling networks together right after their layers were renewed has collapsed trainings, in which most steps were
    clipped; without an exchange hardly any are. How far apart the networks are is logged and decides nothing: two that
    were never pulled at pass 0.1 nats while they still warm up, and 1 nat once each learns from images of its own
    choice. It watches one epoch without waiting for the device, and decides when the next one begins.
    """

    factor: Tensor  # f32 (): on the weight of the agreement term
    divergence: Tensor  # the agreement terms' sum
    terms: Tensor  # their number
    clipped: Tensor  # number of steps whose gradients were too large
    steps: Tensor  # number of all steps

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        for name in ("divergence", "terms", "clipped", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def watch(self, term: Tensor) -> None:
        """An unweighted agreement term, in nats."""
        self.divergence += term.detach().float()
        self.terms += 1

    def watch_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> None:
        """The gradients of a step, before they are clipped at `limit`. What rests may still hold those of an earlier
        phase: they do not count."""
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.requires_grad and p.grad is not None])
        self.clipped += (norm > limit).float()
        self.steps += 1

    def decide(self) -> None:
        """After the watched epoch: half the weight from now on, and a warning, if it began badly."""
        apart = float(self.divergence / self.terms.clamp_min(1))
        clipped = float(self.clipped / self.steps.clamp_min(1))
        log.info("the exchange began at a symmetric KL of %.3f nats, %.0f %% of steps clipped", apart, 100 * clipped)
        if clipped > MOST_CLIPPED:
            log.warning("most steps of the exchange had to be clipped: it counts half from now on")
            self.factor *= 0.5
