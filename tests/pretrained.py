"""A folder of pretrained weights for tests: those of `small`, which needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ml import networks
from ml.networks import weights

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def install_small(folder: Path, side: int) -> None:
    """Weights of `small` for images of `side` pixels, whose batch normalisation has seen pictures."""
    torch.manual_seed(5)
    network = networks.build("small", 7, side)
    with torch.no_grad():
        for _ in range(10):
            network.train()(torch.randn(32, 3, side, side))
    file = folder / "file.safetensors"
    save_file(network.state_dict(), file)
    facts = {"source": "a test", "licence": "none", "image_size": side, "resize": "squash"}
    weights.add_file(folder, file, "small", mean=MEAN, std=STD, **facts)
