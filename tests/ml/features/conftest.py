"""What trainings on cached features need: pretrained weights, and images that have a digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ml.data.dataset import LabeledImages
from ml.training import checkpoint
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, reports, same
from tests.pretrained import install_small


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights with those of `small`."""
    folder = tmp_path_factory.mktemp("weights")
    install_small(folder, SIDE)
    return folder


@pytest.fixture
def cached(labeled: LabeledImages) -> LabeledImages:
    """The images with a digest, as those of a data set of the service have."""
    return LabeledImages(labeled.images, labeled.labels, labeled.classes, "digest")


def check_resuming(build: Callable[[str], Trainer], checkpoints: Path) -> None:
    """A training that goes on from a checkpoint within an epoch, without the features that it began with, ends with the
    same bits as one that was never stopped.

    Args:
        build: Builds the training, whose features are kept in the folder of this name.
        checkpoints: Where the checkpoint is written.
    """
    whole, stopped = build("one"), build("one")
    reports(whole)
    events = iter(stopped)
    for _ in range(4):
        next(events)
    checkpoint.write(checkpoints, stopped.state())
    newest = checkpoint.newest([checkpoints], config_hash=stopped.config_hash, data_hash=stopped.data_hash)
    assert newest.state is not None
    resumed = build("two")
    resumed.restore(newest.state)
    reports(resumed)
    assert same(dict(whole.method.state_dict()), dict(resumed.method.state_dict())) == []
