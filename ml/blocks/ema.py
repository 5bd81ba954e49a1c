"""The weights of a network averaged over time, as a network of its own (Tarvainen and Valpola, NeurIPS 2017).

Only weights are averaged; what normalises by batches keeps its own statistics. The average's weights are buffers: no
optimiser finds them, and a checkpoint holds them. It knows no label and no loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightEma(nn.Module):
    """Takes over `network`, which becomes the average; its first weights are where that begins."""

    steps: Tensor  # int64 scalar: how often it was updated

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for module in network.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    del module._parameters[name]
                    module.register_buffer(name, _laid_out(parameter.detach()))
        self.network = network
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, network: nn.Module, kept: float | Tensor) -> None:
        """θ̄ <- kept · θ̄ + (1 - kept) · θ, where θ are the weights of another network of the same kind."""
        for name, trained in network.named_parameters():
            self.network.get_buffer(name).lerp_(trained, 1 - kept)
        self.steps += 1

    def equally(self, most: float) -> Tensor:
        """What the next update must keep for all so far to count alike, but at most `most`: a scalar."""
        return (1 - 1 / (self.steps + 1)).clamp_max(most)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C), without gradients."""
        logits: Tensor = self.network(images)
        return logits


def _laid_out(weight: Tensor) -> Tensor:
    """Filters lie as those of trained networks do."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight
