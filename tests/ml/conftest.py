"""Tiny data and specs: 16 pixels, four classes told apart by the half that is coloured, five convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ml import methods
from ml.data.dataset import LabeledImages, Truth
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer

SIDE, CLASSES = 16, 4
EXTRA_METHODS = Path(__file__).parent / "extra_methods"  # methods that only tests know: phases, pools, views, memory


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums on one thread have one order; and the machine may be small."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def extra_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Discovery looks into one more folder."""
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(EXTRA_METHODS)])


def halves(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images uint8 (count, 16, 16, 3) and their classes: which half is redder or bluer. Mirroring changes no class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = torch.randint(0, 80, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, channel = 8 * (label // 2), 2 * (label % 2)
        image[row : row + 8, :, channel] += 120
    return images, labels


@pytest.fixture(scope="session")
def labeled() -> LabeledImages:
    images, labels = halves(97)
    return LabeledImages(images, labels, tuple("abcd"))


@pytest.fixture(scope="session")
def truth() -> Truth:
    images, labels = halves(64, seed=1)
    return Truth(None, images, labels)


@pytest.fixture
def spec() -> Callable[..., TrainingSpec]:
    """A spec of three epochs and a few seconds, with any field replaced."""

    def make(**changes: Any) -> TrainingSpec:
        settings: dict[str, Any] = {
            "method": "ce",
            "network": "small",
            "image_size": SIDE,
            "epochs": 3,
            "batch_size": 32,
            "learning_rate": 0.05,
            "augmentation": "flip",
            "precision": "f32",
        }
        return TrainingSpec.model_validate(settings | changes)

    return make


def reports(training: Trainer) -> list[EpochReport]:
    """Train to the end."""
    return [event for event in training if isinstance(event, EpochReport)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of tensors that differ in any bit; NaN equals NaN."""
    differing = set(one) ^ set(other)
    for name in set(one) & set(other):
        a, b = one[name], other[name]
        alike = a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.isnan(a), torch.isnan(b))
        if not alike or not torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
            differing.add(name)
    return sorted(differing)
