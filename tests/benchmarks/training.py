"""T1, T2, P4: the loader against a loader of single PIL images, and a whole epoch against its bare steps, one thread.

Conditions: CPU, torch with one thread, f32, batch 128, 32 px, crop and flip. Ratios of CPU time of this process.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.transforms import v2  # type: ignore[import-untyped]

from ml.data import image_store
from ml.data.augmentation import Augmentation
from ml.data.dataset import LabeledImages, Truth
from ml.method import Optimizers, take_gradient_step
from ml.training import checkpoint
from ml.training.checkpoint_writer import CheckpointWriter
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._sizes import size
from tests.benchmarks._timing import cpu_seconds, train_epoch

SIDE = 32
COUNT, BATCH = size(2560, 64), size(128, 16)
PHOTOGRAPH_SIDE, PHOTOGRAPHS, PHOTOGRAPH_BATCH = 160, size(256, 4), size(32, 2)
SIMULATED_EPOCHS = size(15, 1)
EPOCH_STEPS, STEP_S, CHECKPOINT_S = 100, 0.008, 2.0  # of the simulated loop; a checkpoint is due after an epoch
MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.2, 0.2, 0.2])


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


class SingleImages(Dataset[Tensor]):
    """What the noisy-label repositories do: one PIL image at a time through torchvision's transforms."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images
        self._transform = transforms.Compose(
            [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
             transforms.Normalize(MEAN.tolist(), STD.tolist())]
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Tensor:
        view: Tensor = self._transform(Image.fromarray(self._images[row]))
        return view


def pipeline() -> dict[str, object]:
    images = pictures()
    ours = image_store.ImageStore(images, MEAN.double(), STD.double(), device=torch.device("cpu"))
    generator, singles = torch.Generator().manual_seed(1), SingleImages(images.numpy())

    def resident() -> None:
        for rows in torch.split(torch.randperm(COUNT), BATCH):
            ours.augmented(rows, Augmentation("crop_flip"), generator)

    def single() -> None:
        for _ in DataLoader(singles, BATCH, shuffle=True):
            pass

    resident()
    pairs = [(cpu_seconds(resident), cpu_seconds(single)) for _ in range(5)]
    speed, peer = (COUNT / statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "id": "T1",
        "benchmark": "loader, images per CPU second over PIL's",
        "measured": round(speed / peer, 1),
        "target": ">= 12",
        "met": speed / peer >= 12,
        "images_per_cpu_second": round(speed),
        "peer_images_per_cpu_second": round(peer),
    }


def photographs(name: str, target: float, kind: Augmentation, *peers: Any) -> dict[str, object]:
    """Views of photographs, ours by the batch, torchvision's of single PIL images.

    Args:
        name: Of the augmentation.
        target: How many times as fast ours must be.
        kind: Ours.
        peers: torchvision's transforms that do the same.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (PHOTOGRAPHS, PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    ours = image_store.ImageStore(images, MEAN.double(), STD.double(), device=torch.device("cpu"))
    singles = [Image.fromarray(image) for image in images.numpy()]
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN.tolist(), STD.tolist())]
    transform = v2.Compose([v2.RandomResizedCrop(PHOTOGRAPH_SIDE), v2.RandomHorizontalFlip(), *peers, *tensor])

    def batched() -> None:
        for rows in torch.split(torch.randperm(PHOTOGRAPHS), PHOTOGRAPH_BATCH):
            ours.augmented(rows, kind, generator)

    def single() -> None:
        for rows in torch.split(torch.randperm(PHOTOGRAPHS), PHOTOGRAPH_BATCH):
            torch.stack([transform(singles[row]) for row in rows.tolist()])

    batched()
    pairs = [(cpu_seconds(batched), cpu_seconds(single)) for _ in range(3)]
    own, peer = (1000 * statistics.median(times) / PHOTOGRAPHS for times in zip(*pairs, strict=True))
    return {
        "id": "T1",
        "benchmark": f"views of photographs at {PHOTOGRAPH_SIDE} px, {name}: images per CPU second over v2's on PIL",
        "measured": round(peer / own, 1),
        "target": f">= {target}",
        "met": peer / own >= target,
        "milliseconds": round(own, 3),
        "peer_milliseconds": round(peer, 3),
    }


def epoch(network: str, count: int, repeats: int) -> dict[str, object]:
    """With events, augmentation and the log that ranks labels; validation is left out, which bare steps do not have."""
    images = LabeledImages(pictures()[:count], torch.arange(count) % 10, tuple("abcdefghij"))
    spec = TrainingSpec(
        method="ce", network=network, epochs=repeats + 1, batch_size=BATCH, precision="f32", validation_fraction=0.0
    )
    training = Trainer.build(spec, images, truth=Truth(None, None, None), device="cpu", threads=1)
    events = iter(training)
    train_epoch(events)  # warm
    static = static_steps(training, count)
    pairs = [(cpu_seconds(static), cpu_seconds(lambda: train_epoch(events))) for _ in range(repeats)]
    ratio = statistics.median(bare / whole for bare, whole in pairs)
    return {
        "id": "T2",
        "benchmark": f"epoch of {network} over its bare steps",
        "measured": round(ratio, 3),
        "target": ">= 0.97",
        "met": ratio >= 0.97,
        "images_per_cpu_second": round(count / statistics.median(whole for _, whole in pairs)),
    }


def static_steps(training: Trainer, count: int) -> Callable[[], None]:
    """The same network on one batch that never changes: forward, loss, backward, step."""
    batch = training.score(lambda view: view)[:BATCH].contiguous(memory_format=torch.channels_last)
    labels = training.labels[:BATCH]
    networks: Any = training.method.networks
    network = networks[0]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)

    def steps() -> None:
        network.train()
        for _ in range(count // BATCH):
            loss = torch.nn.functional.cross_entropy(network(batch), labels)
            take_gradient_step(loss, Optimizers((optimizer,), lambda _: 1.0))

    return steps


def checkpoint_share() -> dict[str, object]:
    """What checkpoints of ResNet-18 cost a training whose epochs take 0.8 s, as on a GPU: steps are waits of 8 ms.

    Checkpoints are due after epochs, at least 2 s apart as in a job. Measured is the loop's own time for them. Beside
    it: the share if the loop wrote them itself, and by how much the loop became slower, to which cores that are busy
    with other work add.
    """
    images = LabeledImages(pictures()[:BATCH], torch.arange(BATCH) % 10, tuple("abcdefghij"))
    training = Trainer.build(TrainingSpec(method="ce", epochs=1, precision="f32"), images, device="cpu", threads=1)
    next(iter(training))

    def elapsed(writer: CheckpointWriter | None) -> tuple[float, float]:
        started, own_s = time.perf_counter(), 0.0
        for _ in range(SIMULATED_EPOCHS):
            for step in range(EPOCH_STEPS):
                time.sleep(STEP_S)
                training.step += 1
                called = time.perf_counter()
                if writer is not None:
                    writer.collect()
                    if step + 1 == EPOCH_STEPS and writer.is_due(CHECKPOINT_S):
                        writer.start()
                own_s += time.perf_counter() - called
        return time.perf_counter() - started, own_s

    with TemporaryDirectory() as folder, closing(CheckpointWriter(training, Path(folder))) as writer:
        (without_s, nothing_s), (with_s, own_s) = elapsed(None), elapsed(writer)
        writer.collect(wait=True)
        started = time.perf_counter()
        checkpoint.write(Path(folder), training.state())
        synchronous_s = time.perf_counter() - started
    share = round((own_s - nothing_s) / with_s, 4)
    epoch_s = EPOCH_STEPS * STEP_S
    between_s = math.ceil(CHECKPOINT_S / epoch_s) * epoch_s
    return {
        "id": "P4",
        "benchmark": "checkpoints of resnet18, share of a loop of 0.8 s epochs",
        "measured": share,
        "target": "<= 0.02",
        "met": share <= 0.02,
        "share_if_synchronous": round(synchronous_s / (between_s + synchronous_s), 3),
        "slower": round(with_s / without_s - 1, 3),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    epochs = (size(("small", 1280, 7), ("small", 32, 1)), size(("resnet18", 256, 3), ("resnet18", 16, 1)))
    views = (
        photographs("cropped and mirrored", 2, Augmentation("resized_crop_flip")),
        photographs("colour jitter as well", 2, Augmentation("resized_crop_flip", color_jitter=0.4),
                    v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        photographs("RandAugment as well", 0.5, Augmentation("resized_crop_flip", randaugment=9), v2.RandAugment()),
    )  # fmt: skip
    for result in (pipeline(), *views, *(epoch(*case) for case in epochs), checkpoint_share()):
        print(json.dumps(result), flush=True)
