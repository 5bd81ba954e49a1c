"""T7 and the GPU side of T5: epochs of a CIFAR-sized set on one GPU in bf16, written and recorded steps.

Seconds of an epoch without measuring, as the training reports them, after a first epoch that is not counted.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch

from ml.data.dataset import LabeledImages
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.benchmarks._sizes import size

SIDE, CLASSES = 32, 10
IMAGES, EPOCHS = size(50_000, 1024), size(6, 2)
TARGETS = {("resnet18", 128): 0.70, ("resnet18", 512): 0.50, ("resnet34", 128): 1.3}
PAIR_TARGET = 1.6


def main() -> None:
    if not torch.cuda.is_available():
        for (network, batch), target in TARGETS.items():
            print(json.dumps(line(network, batch, target) | nothing("s")), flush=True)
        print(json.dumps(pair_line() | nothing("ratio")), flush=True)
        return
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    data = LabeledImages(images, torch.arange(IMAGES) % CLASSES, tuple("abcdefghij"))
    for (network, batch), target in TARGETS.items():
        for cuda_graphs in (False, True):
            took = seconds(data, network, batch, cuda_graphs)
            figures = {"measured": round(took, 3), "met": took <= target, "cuda_graphs": cuda_graphs}
            print(json.dumps(line(network, batch, target) | figures | device()), flush=True)
    for cuda_graphs in (False, True):
        one, two = (seconds(data, "resnet18", 128, cuda_graphs, networks=members) for members in (1, 2))
        figures = {"measured": round(two / one, 2), "met": two / one <= PAIR_TARGET, "cuda_graphs": cuda_graphs}
        print(json.dumps(pair_line() | figures | device()), flush=True)


def line(network: str, batch: int, target: float) -> dict[str, Any]:
    return {"id": "T7", "benchmark": f"epoch of {network} on a GPU, batch {batch}, bf16", "target": f"<= {target} s"}


def pair_line() -> dict[str, Any]:
    return {"id": "T5", "benchmark": "epoch of two resnet18 over one on a GPU", "target": f"<= {PAIR_TARGET}"}


def nothing(unit: str) -> dict[str, Any]:
    return {"measured": None, "met": None, "why": "this machine has no CUDA device", "unit": unit}


def device() -> dict[str, str]:
    return {"device": torch.cuda.get_device_name(), "torch": torch.__version__}


def seconds(data: LabeledImages, network: str, batch: int, cuda_graphs: bool, networks: int = 1) -> float:
    spec = TrainingSpec(
        method="ce", params={"networks": networks}, network=network, epochs=EPOCHS, batch_size=batch,
        precision="bf16", device="cuda", validation_fraction=0.0,
    )  # fmt: skip
    reports = [e for e in Trainer.build(spec, data, cuda_graphs=cuda_graphs) if isinstance(e, EpochReport)]
    return statistics.median(report.seconds for report in reports[1:])


if __name__ == "__main__":
    main()
