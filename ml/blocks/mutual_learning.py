"""Mutual learning of two networks: a term that pulls their predictions together, its schedule, and its damping.

In both directions it corrects random wrong labels and reinforces systematic ones. In one direction the first network
learns from the second, which is not affected.

Shapes: `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.blocks import losses
from ml.method import MethodParams

ROUNDING = 1e-9  # 0.7 * 10 is 7.000000000000001
MAX_CLIPPED = 0.5  # of the steps of its first epoch: trainings that collapsed had 0.67 and more, others up to 0.43

log = logging.getLogger(__name__)


class Prediction(Protocol):
    """What a network predicts for a batch."""

    @property
    def logits(self) -> Tensor:
        """(B, C)."""
        ...


class AgreementParams(MethodParams):
    """The parameters of the agreement term, shared by every method that has one."""

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
    """λ, the weight of the agreement term, in all steps of epoch `epoch`, from 0, of `epochs`; 0 before epoch 0."""
    if params.agreement not in ("both", "one_way"):
        return 0.0
    # rounded up, so that a short training also begins with a plain epoch, unless the start is 0
    start = math.ceil(params.agreement_start * epochs - ROUNDING)
    length = round(params.agreement_ramp * epochs)
    # epoch + 1: the first epoch of a ramp already has some weight, or it would be one more plain epoch
    return params.agreement_weight * min(1.0, max(0.0, (epoch + 1 - start) / max(length, 1)))


def agreement_loss(direction: str, first: Tensor, second: Tensor) -> Tensor:
    """The unweighted agreement term, symKL(softmax first, softmax second) in nats: a scalar.

    Args:
        direction: both, or one_way, where `second` has no gradient.
        first: logits of the first network, (B, C).
        second: logits of the second network, (B, C).
    """
    return losses.symmetric_kl(first, second.detach() if direction == "one_way" else second)


class AgreementDamping(nn.Module):
    """Halves the weight of the agreement term if most gradients have to be clipped in its first epoch.

    Two networks that were pulled together right after their layers were reinitialised have made trainings collapse.
    Most of the steps of these were clipped; without the agreement term hardly any is. The divergence of the networks is
    logged and decides nothing: networks that were never pulled together pass 0.1 nats while they warm up, and 1 nat
    once each selects its own images. One epoch is recorded without waiting for the device; the next one begins with the
    decision.
    """

    factor: Tensor  # f32 scalar: on the weight of the agreement term
    divergence: Tensor  # sum of the agreement terms
    terms: Tensor  # number of agreement terms
    clipped: Tensor  # number of steps whose gradients were clipped
    steps: Tensor  # number of all steps

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(()))
        for name in ("divergence", "terms", "clipped", "steps"):
            self.register_buffer(name, torch.zeros(()))

    def agreement_loss(
        self, direction: str, passes: Iterable[tuple[Prediction, Prediction]], *, watched: bool
    ) -> Tensor:
        """The damped agreement term, summed over passes: a scalar.

        Args:
            direction: as of the function `agreement_loss`.
            passes: of both networks on the same images.
            watched: record the divergence.
        """
        total = torch.zeros_like(self.factor)
        for first, second in passes:
            term = agreement_loss(direction, first.logits, second.logits)
            total = total + self.factor * term
            if watched:
                self.record_divergence(term)
        return total

    def record_divergence(self, term: Tensor) -> None:
        """Record an unweighted agreement term, a scalar in nats."""
        self.divergence += term.detach().float()
        self.terms += 1

    def record_gradients(self, parameters: Iterable[nn.Parameter], limit: float) -> None:
        """Record whether a step's gradients will be clipped.

        Args:
            parameters: of all networks. Frozen ones may still hold gradients of an earlier phase and do not count.
            limit: of the joint gradient norm.
        """
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.requires_grad and p.grad is not None])
        self.clipped += (norm > limit).float()
        self.steps += 1

    def update_factor(self) -> None:
        """After the recorded epoch: halve the factor, with a warning, if most steps were clipped."""
        divergence = float(self.divergence / self.terms.clamp_min(1))
        clipped = float(self.clipped / self.steps.clamp_min(1))
        log.info("agreement began at a symmetric KL of %.3f nats, %.0f %% of steps clipped", divergence, 100 * clipped)
        if clipped > MAX_CLIPPED:
            log.warning("most gradients were clipped when agreement began: its weight is halved from now on")
            self.factor *= 0.5
