"""Optimizers other than the training's SGD, for methods whose paper uses one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Adam with β = 0.9, 0.999 at a learning rate of its own, since the training's is meant for SGD.

    Args:
        parameters: what it owns.
        rate: learning rate.
        weight_decay: L2 penalty.
    """
    # fused reads its rate from a tensor without waiting, as in TrainHyperparameters.sgd; a graph needs capturable
    return torch.optim.Adam(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=True)
