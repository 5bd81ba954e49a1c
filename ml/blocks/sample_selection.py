"""The confidence regulariser and the dynamic sieve of CORES (Cheng et al., ICLR 2021, Eq. 3 and 5).

A term that rewards sure answers parts the losses of right and wrong labels; a label stays in the sieve as long as its
loss is no larger than the mean loss over all labels the image might have had. The phase in which both happen is that of
CORES, and the first one of CORES*.

Shapes: `N` images, `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.blocks import losses, schedules
from ml.method import Batch, Network, Optimizers, Phase, TrainHyperparameters

SMALLEST = 1e-8  # added to probabilities under a logarithm, as released


class SampleSelection(nn.Module):
    """Which labels the last epoch kept, and how often each class is among them."""

    labels: Tensor
    kept: Tensor  # bool (N,): of each image when it was last seen
    prior: Tensor  # f32 (C,), sums to 1

    def __init__(self, labels: Tensor, classes: int) -> None:
        """Given labels int64 (N,)."""
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("kept", torch.ones(len(labels), dtype=torch.bool))
        self.register_buffer("prior", torch.zeros(classes))
        self.count()

    def count(self) -> None:
        """The prior of the labels kept, as an epoch begins; of all, if none is."""
        kept = self.kept | ~self.kept.any()
        self.prior.copy_(losses.one_hot(self.labels[kept], len(self.prior)).mean(dim=0))

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor, beta: float, *, sieving: bool) -> Tensor:
        """Mean regularised loss of the batch, of the labels kept where `sieving`: a scalar, 0 where none is."""
        regularised, value = regularised_losses(logits, labels, beta, self.prior)
        if not sieving:
            return regularised.mean()
        kept = value <= 0
        self.kept[index] = kept
        return (regularised * kept).sum() / kept.sum().clamp_min(1)


def regularised_losses(logits: Tensor, labels: Tensor, beta: float, prior: Tensor) -> tuple[Tensor, Tensor]:
    """ℓ = CE - β Σ_c q_c (-log p_c) and the sieve's d = CE - mean_c(-log p_c) without gradient, (B,) each."""
    plain = losses.cross_entropies(logits, labels)
    others = -(logits.float().softmax(dim=1) + SMALLEST).log()
    return plain - beta * (others * prior).sum(dim=1), (plain - others.mean(dim=1)).detach()


def regulariser_weight(epoch: int, begin: int, length: int, largest: float) -> float:
    """β_t: 0 before epoch `begin`, from there up to `largest` in equal steps over `length` epochs, both ends among
    them; then `largest`."""
    return 0.0 if epoch < begin else largest * schedules.linear_ramp(epoch - begin, length - 1)


def selection_phase(
    network: Network,
    chosen: SampleSelection,
    training: TrainHyperparameters,
    *,
    epochs: int,
    begin: int,
    growth: int,
    since: int,
    largest: float,
    factor: Callable[[float], float],
    scale: float = 1.0,
) -> Phase:
    """A training's first phase: plain until epoch `begin`, with a regulariser that grows for `growth` epochs, and with
    the sieve from epoch `since` on.

    The learning rate is `scale` times the spec's, by the schedule `factor` and divided by 1 + β (the released code).
    """

    def weight(epoch: int) -> float:
        return regulariser_weight(epoch, begin, growth, largest)

    def loss(batch: Batch) -> Tensor:
        logits = network(batch.images)
        batch.record_logits(logits)
        return chosen.loss(logits, batch.labels, batch.index, weight(batch.epoch), sieving=batch.epoch >= since)

    def slowed(progress: float) -> float:
        return factor(progress) / (1.0 + weight(int(progress * epochs + schedules.ROUNDING)))

    def optimizers() -> Optimizers:
        return Optimizers((training.sgd(network.parameters(), scale=scale),), slowed)

    return Phase(epochs, loss, optimizers, begin_epoch=lambda _: chosen.count(), name="sieve")
