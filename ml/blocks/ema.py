"""The exponential moving average (EMA) of a network's weights, as a network of its own: the mean teacher.

Tarvainen and Valpola, NeurIPS 2017. Only weights are averaged; batch normalisation keeps its own running statistics.
The averaged weights are buffers: no optimiser owns them, and a checkpoint holds them.

Shapes: `B` batch, `C` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightEma(nn.Module):
    """The running average of another network's weights."""

    steps: Tensor  # int64 scalar: number of updates

    def __init__(self, network: nn.Module) -> None:
        """Take over `network`, a fresh network of the averaged kind: its parameters become buffers, its weights are the
        average's first ones."""
        super().__init__()
        for module in network.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[name]
                    module.register_buffer(name, _channels_last(parameter.detach()))
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module, momentum: float | Tensor) -> None:
        """θ̄ <- momentum · θ̄ + (1 - momentum) · θ.

        Args:
            network: a network of the same kind, with the weights θ.
            momentum: share of the average that stays, in [0, 1].
        """
        for name, weight in network.named_parameters():
            self.network.get_buffer(name).lerp_(weight, 1 - momentum)
        self.steps += 1

    def equal_momentum(self, maximum: float) -> Tensor:
        """The momentum, a scalar, by which the next update gives all updates so far the same weight, capped at
        `maximum`."""
        return (1 - 1 / (self.steps + 1)).clamp_max(maximum)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C) without gradients."""
        logits: Tensor = self.network(images)
        return logits


def _channels_last(weight: Tensor) -> Tensor:
    """Convolution filters in the memory format that trained networks have."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
