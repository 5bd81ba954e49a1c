"""Optimizers other than the spec's SGD, for methods whose paper asks for one. They know no method."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def adam(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Adam at a learning rate of its own, since the spec's is meant for SGD; β = 0.9, 0.999; L2 weight decay."""
    # as Recipe.sgd: fused reads its rate from a tensor without waiting; capturable, or a recording refuses it
    return torch.optim.Adam(parameters, lr=rate, weight_decay=weight_decay, fused=True, capturable=True)
