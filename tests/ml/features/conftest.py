"""What trainings on cached features need: pretrained weights, and images that have a digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml.data.dataset import LabeledImages
from tests.ml.conftest import SIDE
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
