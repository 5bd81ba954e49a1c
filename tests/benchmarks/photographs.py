"""P2: seconds until 90 % of clean test photographs are right, beside a plain fine-tuning script on the same cores.

`python -m tests.benchmarks.photographs DATA` reads `imagenette` (2,000 of its photographs, labels `noise25`) from the
folder DATA (or DENLL_DATA). Ours is the forward probe: decoding, encoding by EfficientNet-Lite0, estimating the noise
and solving. The peer is what people write with timm: the same architecture and weights, a DataLoader with
RandomResizedCrop and flips over the JPEG files, AdamW, cosine, all layers, cross-entropy. Its evaluations are not
counted, ours are never needed. Both have two threads; the peer's DataLoader has two workers beside them. Wall time, one
after the other; imports are not counted.
"""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ml.data import decoding
from ml.data.dataset import LabeledImages, Truth
from ml.method import ENSEMBLE
from ml.networks import weights
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.benchmarks._sizes import SMALLEST, arguments, size

NETWORK, SIDE, COUNT = "efficientnet_lite0", size(160, 32), size(2000, 40)
ACCURACY, TARGET, MOST_EPOCHS = size(0.90, 0.0), 0.5, size(4, 1)
BATCH, RATE, DECAY = 64, 1e-3, 0.05  # of the peer: the best of 3e-4, 1e-3 and 3e-3 after an epoch
EVALUATED_EVERY = 8  # steps of the peer
THREADS = 2


class Photographs(NamedTuple):
    """Files, and the classes that they are labelled and known to be of."""

    files: list[Path]
    given_labels: Tensor  # int64 (N,)
    clean: Tensor  # int64 (N,)
    test_files: list[Path]
    test_clean: Tensor
    classes: tuple[str, ...]


def read_table(data: Path) -> Photographs:
    folder = data / "imagenette"
    tables: dict[str, list[dict[str, str]]] = {}
    for name in ("train", "test"):
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(tables["train"]))[:COUNT]
    train, test = [tables["train"][row] for row in sorted(order)], tables["test"]
    classes = sorted({row["clean"] for row in train})
    number = {name: index for index, name in enumerate(classes)}

    def ids(rows: list[dict[str, str]], column: str) -> Tensor:
        return torch.tensor([number[row[column]] for row in rows])

    return Photographs(
        [folder / row["file"] for row in train],
        ids(train, "noise25"),
        ids(train, "clean"),
        [folder / row["file"] for row in test],
        ids(test, "clean"),
        tuple(classes),
    )


def generate(folder: Path) -> Photographs:
    """Pictures of noise, to see that everything runs."""
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(2 * COUNT)]
    for file in files:
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
    labels = torch.arange(COUNT) % 4
    return Photographs(files[:COUNT], labels, labels, files[COUNT:], labels, tuple("abcd"))


# --- ours ---


def decoded(files: list[Path]) -> Tensor:
    squares = np.empty((len(files), SIDE, SIDE, 3), np.uint8)
    for square, file in zip(squares, files, strict=True):
        picture = decoding.decode(file.read_bytes())
        square[:] = decoding.resize(picture, decoding.Geometry(picture.shape[1], picture.shape[0], SIDE, "squash"))
    return torch.from_numpy(squares)


def ours(photographs: Photographs, folder: Path) -> tuple[float, float]:
    """Seconds, and the accuracy on the test set."""
    spec = TrainingSpec(
        method="forward_probe", network=NETWORK, pretrained=True, tune="none", image_size=SIDE, epochs=1
    )
    started = time.perf_counter()
    images = LabeledImages(decoded(photographs.files), photographs.given_labels, photographs.classes)
    trainer = Trainer.build(spec, images, device="cpu", threads=THREADS, weights=folder)
    for _ in trainer:
        pass
    seconds = time.perf_counter() - started
    truth = Truth(None, decoded(photographs.test_files), photographs.test_clean)
    judged = Trainer.build(spec, images, truth=truth, device="cpu", threads=THREADS, weights=folder)
    [report] = [event for event in judged if isinstance(event, EpochReport)]
    return seconds, report.test[ENSEMBLE].accuracy


# --- the peer ---


class Files(Dataset[Any]):
    """Photographs by a transform of torchvision."""

    def __init__(self, files: list[Path], labels: Tensor, transform: Any) -> None:
        self._files, self._labels, self._transform = files, labels, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self._files[row]) as picture:
            return self._transform(picture.convert("RGB")), self._labels[row]


def peer(photographs: Photographs, file: Path) -> Iterator[tuple[float, float]]:
    """Seconds of training and the accuracy on the test set, every few steps."""
    import timm
    from torchvision import transforms  # type: ignore[import-untyped]

    norm = transforms.Normalize([127 / 255] * 3, [128 / 255] * 3)
    views = [transforms.RandomResizedCrop(SIDE, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
    train = Files(
        photographs.files,
        photographs.given_labels,
        transforms.Compose([*views, transforms.ToTensor(), norm]),
    )
    plain = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor(), norm])
    test = DataLoader(Files(photographs.test_files, photographs.test_clean, plain), 100, num_workers=2)
    loader: DataLoader[Any] = DataLoader(train, BATCH, shuffle=True, num_workers=2)
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    published = load_file(file)
    model.load_state_dict({name: published[name] for name in model.state_dict()})
    model = nn.Sequential(model, nn.Linear(1280, len(photographs.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, MOST_EPOCHS * len(loader))
    seconds, steps, started = 0.0, 0, time.perf_counter()
    for _ in range(MOST_EPOCHS):
        for pictures, labels in loader:
            model.train()
            loss = nn.functional.cross_entropy(model(pictures), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            steps += 1
            if steps % EVALUATED_EVERY == 0 or steps == MOST_EPOCHS * len(loader):
                seconds += time.perf_counter() - started
                yield seconds, accuracy(model, test)
                started = time.perf_counter()


@torch.no_grad()
def accuracy(model: nn.Module, test: DataLoader[Any]) -> float:
    model.eval()
    right = sum(int((model(pictures).argmax(dim=1) == labels).sum()) for pictures, labels in test)
    return right / len(test.dataset)  # type: ignore[arg-type]


def time_to_accuracy(photographs: Photographs, folder: Path) -> dict[str, object]:
    record = weights.add(folder, NETWORK)
    seconds, reached = ours(photographs, folder)
    best, theirs = 0.0, None
    for elapsed, share in peer(photographs, weights.file_of(folder, record)):
        best = max(best, share)
        theirs = elapsed
        if share >= ACCURACY:
            break
    assert theirs is not None
    ratio = seconds / theirs
    return {
        "id": "P2",
        "benchmark": f"seconds to {ACCURACY:.0%} of clean photographs over a fine-tuning script",
        "measured": round(ratio, 3),
        "target": f"<= {TARGET}",
        "met": ratio <= TARGET and reached >= ACCURACY,
        "seconds": round(seconds, 1),
        "accuracy": round(reached, 4),
        "peer_seconds": round(theirs, 1),
        "peer_accuracy": round(best, 4),  # below the aim: it was given up after the last epoch
    }


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        data = (arguments() or [os.environ.get("DENLL_DATA", "")])[0]
        if SMALLEST:
            print(json.dumps(time_to_accuracy(generate(root), root / "weights")), flush=True)
        elif data:
            print(json.dumps(time_to_accuracy(read_table(Path(data)), root / "weights")), flush=True)
        else:
            why = {"measured": None, "met": None, "why": "needs DENLL_DATA, a folder with imagenette"}
            print(json.dumps({"id": "P2", "benchmark": "seconds to 90 %", "target": "<= 0.5", **why}), flush=True)
