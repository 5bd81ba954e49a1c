"""`small`: five convolutions, 0.16 million parameters, seconds of training on a CPU. For demos, tests, first looks."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ml.networks import chain

WIDTHS = (16, 32, 64, 96)


def summaries() -> dict[str, str]:
    """One sentence about each network of the family, by name."""
    return {"small": "Five convolutions: trains in seconds on a CPU, from 16 px; for first looks, not for records."}


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`; nobody publishes its weights, so the stem follows the size of the images alone."""
    w0, w1, w2, w3 = WIDTHS
    body = nn.Sequential(
        *_layer(3, w0, stride=1 if chain.keeps_resolution(image_size) else 2),
        *_layer(w0, w1, stride=2),
        *_layer(w1, w2, stride=2),
    )
    last_stage = nn.Sequential(*_layer(w2, w3, stride=2), *_layer(w3, w3), *chain.pooling_layers().values())
    network = chain.Chain(body, last_stage, nn.Linear(w3, classes), image_size)
    chain.initialise(network)
    if pretrained is not None:
        chain.load_pretrained(network, chain.read_weights(pretrained))
    return network


def _layer(inputs: int, outputs: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )
