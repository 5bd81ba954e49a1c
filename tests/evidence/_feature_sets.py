"""Parts of the development sets, their features and their noise, for the evidence on probes."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml import networks, noise
from ml.data import decoding
from ml.data.image_store import ImageStore
from ml.features.encoder import Encoder
from ml.networks import chain, weights
from tests.benchmarks._sizes import SMALLEST

NETWORK = "efficientnet_lite0"
ENCODED = 32  # pictures at a time


@dataclass(frozen=True)
class Enriched:
    """A draw of rows in which a larger share of the labels is wrong; right and wrong rows are drawn uniformly each.

    Attributes:
        column: Of the labels.
        wrong: Share of the rows whose label there is not the clean one.
        count: Rows in all.
    """

    column: str
    wrong: float
    count: int

    def draw(self, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """The drawn rows in their order; the same at every call."""
        is_wrong = np.array([row[self.column] != row["clean"] for row in rows])
        random, wrong = np.random.default_rng(0), round(self.wrong * self.count)
        drawn = [
            random.choice(np.flatnonzero(members), count, replace=False)
            for members, count in ((is_wrong, wrong), (~is_wrong, self.count - wrong))
        ]
        return [rows[number] for number in np.sort(np.concatenate(drawn))]


@dataclass(frozen=True)
class TableRows:
    """Rows of a table of pictures."""

    folder: str
    table: str
    first: int
    last: int | None
    step: int = 1
    shuffled: bool = False  # by a fixed permutation, before rows are taken
    enriched: Enriched | None = None  # those of the rows that are drawn


ROWS = {
    "imagenette_a": TableRows("imagenette", "train.csv", 0, 2000),
    "imagenette_b": TableRows("imagenette", "train.csv", 2000, 4000),
    "imagenette_test": TableRows("imagenette", "test.csv", 0, None),
    "cifar10_a": TableRows("cifar10", "train.csv", 0, 4000),
    "cifar10_b": TableRows("cifar10", "train.csv", 4000, 8000),
    "cifar10_human40_a": TableRows("cifar10", "train.csv", 0, 25_000, enriched=Enriched("random1", 0.4, 4000)),
    "cifar10_human40_b": TableRows("cifar10", "train.csv", 25_000, None, enriched=Enriched("random1", 0.4, 4000)),
    "cifar10_test": TableRows("cifar10", "test.csv", 0, None, step=5),
    "neu_steel_train": TableRows("neu_steel", "images.csv", 0, 600, shuffled=True),
    "neu_steel_test": TableRows("neu_steel", "images.csv", 600, 900, shuffled=True),
    "magnetic_tile": TableRows("magnetic_tile", "images.csv", 0, None),
    "tinyimagenet32": TableRows("tinyimagenet32", "train.csv", 0, 4000, shuffled=True),
    "smallest": TableRows("smallest", "images.csv", 0, 40),
}


class Features(NamedTuple):
    """Features of a part, its labels by column, and small pictures, on which instance-dependent noise is drawn."""

    features: Tensor  # f32 (N, D)
    labels: dict[str, Tensor]  # int64 (N,) each
    classes: list[str]
    pictures: NDArray[np.uint8]  # (N, 32, 32, 3)


def read(sets: Path, name: str, side: int, keep: Path) -> Features:
    """The features of a part, encoded unless the folder `keep` has them."""
    part = ROWS[name]
    with (sets / part.folder / part.table).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if part.shuffled:
        order = np.random.default_rng(0).permutation(len(rows))
        rows = [rows[number] for number in np.sort(order[part.first : part.last])]
    else:
        rows = rows[part.first : part.last : part.step]
    if part.enriched is not None:
        rows = part.enriched.draw(rows)
    classes = sorted({row["clean"] for row in rows})
    names = [name for name in rows[0] if {row[name] for row in rows} <= set(classes)]
    labels = {name: torch.tensor([classes.index(row[name]) for row in rows]) for name in names}
    files = [sets / part.folder / row["file"] for row in rows]
    cache = keep / f"{name}_{side}.npz"
    if not cache.exists():
        np.savez(cache, features=encode(np.stack([square(file, side) for file in files])))
    with np.load(cache) as arrays:
        features = torch.from_numpy(arrays["features"]).float()
    return Features(features, labels, classes, np.stack([square(file, 32) for file in files]))


def square(file: Path, side: int) -> NDArray[np.uint8]:
    """The whole picture as uint8 (side, side, 3)."""
    picture = decoding.decode(file.read_bytes())
    return decoding.resize(picture, decoding.Geometry(picture.shape[1], picture.shape[0], side, "squash"))


def encode(pictures: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Features (N, D) of pictures (N, S, S, 3)."""
    side = pictures.shape[1]
    with TemporaryDirectory() as folder:
        if SMALLEST:
            network, mean, std = networks.build("small", 2, side), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        else:
            weights.add_bundled(Path(folder))
            record = weights.find(Path(folder), NETWORK)
            network = networks.build(NETWORK, 2, side, weights.file_of(Path(folder), record))
            mean, std = record.mean, record.std
    frozen, _ = chain.cut(network, "none")
    images = torch.from_numpy(pictures)
    store = ImageStore(images, torch.tensor(mean), torch.tensor(std), device=torch.device("cpu"), padded_bytes=0)
    encoder = Encoder(frozen, side).prepare(store.unaugmented(torch.arange(4)), half=True)
    with torch.inference_mode():
        parts = [encoder(store.unaugmented(rows)).output for rows in torch.split(torch.arange(len(images)), ENCODED)]
    return torch.cat(parts).numpy().astype(np.float16)


def noisy_labels(part: Features, kind: str, seed: int = 1) -> Tensor:
    """A column of the table, or noise injected into the clean labels; `asymmetric`: half of the classes flip."""
    if kind in part.labels:
        return part.labels[kind]
    clean, classes = part.labels["clean"].numpy(), len(part.classes)
    name, rate = kind.rstrip("0123456789"), int(kind[-2:]) / 100
    matrix = np.eye(classes)
    order = np.random.default_rng(seed).permutation(classes)
    for one, other in zip(order[0::2], order[1::2], strict=False):
        matrix[one, one], matrix[one, other] = 1 - rate, rate
    kinds: dict[str, dict[str, Any]] = {
        "asymmetric": {"kind": "transition", "matrix": matrix.tolist()},
        "instance": {"kind": "instance_dependent", "rate": rate},
        "pairflip": {"kind": "pairflip", "rate": rate},
    }
    injected = noise.inject(labels=clean, class_names=part.classes, images=part.pictures, seed=seed, **kinds[name])
    return torch.from_numpy(injected.labels)
