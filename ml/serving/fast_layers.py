"""Layers laid out for predictions: what PyTorch otherwise does to weights for every batch is done once.

oneDNN computes convolutions with weights in blocks. `nn.Conv2d` arranges them anew for every batch, which for one small
image takes as long as the convolution. Autocast also rounds weights to bf16 anew. Packed layers cannot be trained,
saved or exported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn


class PackedConvolution(nn.Module):
    """A convolution on the CPU whose weights are in oneDNN's blocks already; safe for several threads."""

    def __init__(self, layer: nn.Conv2d) -> None:
        """Take over the weights of `layer`, which computes in their precision (f32 or bf16) and pads with zeros."""
        super().__init__()
        padding = cast(tuple[int, ...], layer.padding)
        self._arguments: tuple[Any, ...] = (padding, layer.stride, layer.dilation, layer.groups)
        weight = layer.weight.detach()
        self._dtype = weight.dtype
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *self._arguments)  # type: ignore[arg-type]
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, D', h', w') in the precision of the weights, as autocast has it."""
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps.to(self._dtype), self._weight, self._bias, *self._arguments, "none", [], ""
        )
        return output


def round_weights(layers: Iterable[nn.Module]) -> None:
    """Round the weights of convolutions and linear layers to bf16, as autocast does; other layers stay."""
    for layer in layers:
        if type(layer) in (nn.Conv2d, nn.Linear):  # and no subclasses, which may compute with their weights otherwise
            layer.to(torch.bfloat16)


def pack_convolutions(root: nn.Module) -> None:
    """Replace every convolution on the CPU below `root` by a packed one, where oneDNN is there."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for parent in list(root.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Conv2d and _can_be_packed(layer):
                setattr(parent, name, PackedConvolution(layer))


def _can_be_packed(layer: nn.Conv2d) -> bool:
    is_padded_with_zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return is_padded_with_zeros and layer.weight.device.type == "cpu"
