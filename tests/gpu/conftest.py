"""What only a GPU can show. Without one, every test of this folder is skipped with one line that says so."""

from __future__ import annotations

import os

import pytest
import torch

from ml.data.dataset import LabeledImages, Truth
from ml.training import devices

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", devices.CUBLAS_WORKSPACE)  # read once, at the first product of a test
# What `deterministic` asks for where an operation has no such algorithm; the tests compare the bits.
NONDETERMINISTIC = "ignore:.*does not have a deterministic implementation:UserWarning"

SIDE, CLASSES = 32, 10


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder is marked `gpu`; where there is none, it counts as not run."""
    there = torch.cuda.is_available()
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.filterwarnings(NONDETERMINISTIC))
            if not there:
                item.add_marker(pytest.mark.skip(reason="this machine has no CUDA device"))


def coloured(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's shapes: ten classes, told apart by the row that is bright and its colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    images = torch.randint(0, 120, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    rows = torch.arange(SIDE) // 7 == (labels // 2)[:, None]  # (count, SIDE)
    bright = rows[:, :, None, None] & (torch.arange(3) == labels[:, None] % 2)[:, None, None, :]
    return images + bright.expand(-1, -1, SIDE, -1).to(torch.uint8) * 100, labels


@pytest.fixture(scope="session")
def labeled() -> LabeledImages:
    images, labels = coloured(4096, seed=0)
    return LabeledImages(images, labels, tuple("abcdefghij"))


@pytest.fixture(scope="session")
def truth() -> Truth:
    images, labels = coloured(1024, seed=1)
    return Truth(None, images, labels)
