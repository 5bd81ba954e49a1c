"""The confidence regulariser and the dynamic sample selection of CORES (Cheng et al., ICLR 2021, Eq. 3 and 5).

The regulariser rewards confident predictions, which separates the losses of right and wrong labels. A label is selected
as long as its loss is no larger than the mean loss over all labels that the image could have. CORES consists of the
phase in which both happen, CORES* begins with it.

Shapes: `N` images, `B` batch, `C` classes, logits (B, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml.blocks import losses, schedules
from ml.method import Batch, Network, Optimizers, Phase, TrainHyperparameters

LOG_OFFSET = 1e-8  # added to probabilities under a logarithm, as released


class SampleSelection(nn.Module):
    """Which labels are selected, and the frequencies of their classes."""

    labels: Tensor
    selected: Tensor  # bool (N,): whether each image was selected when last seen
    prior: Tensor  # f32 (C,), sums to 1: class frequencies among the selected labels

    def __init__(self, labels: Tensor, classes: int) -> None:
        """Start with all given labels int64 (N,) selected; `classes` is C."""
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("selected", torch.ones(len(labels), dtype=torch.bool))
        self.register_buffer("prior", torch.zeros(classes))
        self.update_prior()

    def update_prior(self) -> None:
        """Count the classes of the selected labels, of all labels if none is selected. Call it before each epoch."""
        counted = self.selected | ~self.selected.any()
        self.prior.copy_(losses.one_hot(self.labels[counted], len(self.prior)).mean(dim=0))

    def loss(self, logits: Tensor, labels: Tensor, index: Tensor, beta: float, *, selecting: bool) -> Tensor:
        """Mean regularised loss (Eq. 3) of a batch: a scalar.

        Args:
            logits: (B, C).
            labels: given labels int64 (B,).
            index: positions of the images, int64 (B,).
            beta: weight of the regulariser.
            selecting: select anew (Eq. 5) and average over the selected labels only; 0 if there are none.
        """
        regularised, distance = regularised_losses(logits, labels, beta, self.prior)
        if not selecting:
            return regularised.mean()
        selected = distance <= 0
        self.selected[index] = selected
        return (regularised * selected).sum() / selected.sum().clamp_min(1)


def regularised_losses(logits: Tensor, labels: Tensor, beta: float, prior: Tensor) -> tuple[Tensor, Tensor]:
    """The regularised loss and the selection criterion of every image.

    Args:
        logits: (B, C).
        labels: given labels int64 (B,).
        beta: weight of the regulariser.
        prior: q, class frequencies (C,).

    Returns:
        ℓ = CE - β Σ_c q_c (-log p_c), (B,), and CE - mean_c(-log p_c), (B,), without gradient.
    """
    cross_entropies = losses.cross_entropies(logits, labels)
    class_losses = -(logits.float().softmax(dim=1) + LOG_OFFSET).log()
    regularised = cross_entropies - beta * (class_losses * prior).sum(dim=1)
    return regularised, (cross_entropies - class_losses.mean(dim=1)).detach()


def regulariser_weight(epoch: int, begin: int, length: int, largest: float) -> float:
    """β_t: 0 before epoch `begin`, then up to `largest` in equal steps over `length` epochs, both ends included."""
    return 0.0 if epoch < begin else largest * schedules.linear_ramp(epoch - begin, length - 1)


def selection_phase(
    network: Network,
    selection: SampleSelection,
    training: TrainHyperparameters,
    *,
    epochs: int,
    begin: int,
    growth: int,
    select_from: int,
    largest: float,
    factor: Callable[[float], float],
    scale: float = 1.0,
    batch_size: int | None = None,
) -> Phase:
    """The first phase of a training: cross-entropy, then the regulariser with growing weight, then the selection, too.

    Args:
        network: is trained.
        selection: of its labels.
        training: the whole training's hyperparameters.
        epochs: of the phase.
        begin: epoch from which the regulariser grows.
        growth: epochs over which it grows.
        select_from: epoch from which labels are selected.
        largest: weight of the regulariser in the end.
        factor: learning rate schedule of the phase, which is divided by 1 + β_t, as in the released code.
        scale: learning rate as a multiple of the training's.
        batch_size: as `Phase.batch_size`.
    """

    def weight(epoch: int) -> float:
        return regulariser_weight(epoch, begin, growth, largest)

    def loss(batch: Batch) -> Tensor:
        logits = network(batch.images)
        batch.record_logits(logits)
        beta = batch.of_epoch(weight)
        selecting = batch.of_epoch(lambda epoch: epoch >= select_from)
        return batch.label_loss(lambda labels, index: selection.loss(logits, labels, index, beta, selecting=selecting))

    def divided_factor(progress: float) -> float:
        return factor(progress) / (1.0 + weight(int(progress * epochs + schedules.ROUNDING)))

    def optimizers() -> Optimizers:
        return Optimizers((training.sgd(network.parameters(), scale=scale),), divided_factor)

    return Phase(
        epochs,
        loss,
        optimizers,
        begin_epoch=lambda _: selection.update_prior(),
        batch_size=batch_size,
        name="sample selection",
    )
