"""Layers laid out for predictions compute what the trained ones do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ml import networks
from ml.serving import fast_layers

NETWORKS = [
    "small", "preact_resnet18", "resnet18", "resnet34", "efficientnet_lite0", "mobilenet_v3_small",
    "shufflenet_v2_x0_5", "squeezenet1_1", "regnet_y_400mf", "densenet121", "vgg11_bn",
]  # fmt: skip


def images(side: int) -> torch.Tensor:
    drawn = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    return drawn.contiguous(memory_format=torch.channels_last)


def packed(network: nn.Module) -> int:
    return sum(isinstance(module, fast_layers.PackedConvolution) for module in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_packed_convolutions_compute_the_same(name: str) -> None:
    network = networks.build(name, 4, 64).eval()
    convolutions = sum(type(module) is nn.Conv2d for module in network.modules())
    with torch.inference_mode():
        expected = network(images(64))
        fast_layers.pack_convolutions(network)
        torch.testing.assert_close(network(images(64)), expected, rtol=1e-3, atol=1e-4)

    assert packed(network) == convolutions > 0


def test_rounded_weights_change_no_bit() -> None:
    """They are what autocast makes of the exact ones for every batch."""
    network = networks.build("resnet18", 4, 32).eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = network(images(32))
        fast_layers.round_weights(network.modules())
        assert torch.equal(network(images(32)), expected)
        fast_layers.pack_convolutions(network)
        torch.testing.assert_close(network(images(32)), expected, rtol=0.05, atol=0.05)

    assert packed(network) > 0


def test_convolutions_that_pad_otherwise_stay() -> None:
    convolution = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    network = nn.Sequential(convolution, nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, dilation=2))
    expected = copy.deepcopy(network)(images(16))
    fast_layers.pack_convolutions(network)

    assert packed(network) == 1
    torch.testing.assert_close(network(images(16)), expected)
