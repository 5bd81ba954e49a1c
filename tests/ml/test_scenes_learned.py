"""The paper's claim: on labels that name the scene, cross-entropy learns the scene and DeNLL the object."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ml.data import dataset
from ml.methods import denll
from ml.scenes import generate
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

SIDE, TRAINED_ON, TESTED_ON = 16, 1000, 300
CHANCE = 1 / len(generate.CLASSES)


def trained(method: str, params: dict[str, object]) -> tuple[Trainer, generate.SceneImages]:
    """A method after eight epochs on confounded labels, and pictures whose scene is always another class's."""
    pictures = generate.draw(TRAINED_ON, seed=1, image_size=SIDE, noise="confounded", noise_rate=0.4)
    labeled = dataset.LabeledImages(
        torch.from_numpy(pictures.images), torch.from_numpy(pictures.given_labels), generate.CLASSES
    )
    spec = TrainingSpec(
        method=method, params=params, network="small", image_size=SIDE, epochs=8, batch_size=64, learning_rate=0.1,
        augmentation="flip", precision="f32", seed=1, validation_fraction=0.0,
    )  # fmt: skip
    training = Trainer.build(spec, labeled, device="cpu", threads=1)
    for _ in training:
        pass
    return training, generate.draw(TESTED_ON, seed=2, image_size=SIDE, swapped=True)


def predictions(training: Trainer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Predicted classes (N,), and centres x, y (N, 2) of the masks, if the method has a localization module."""
    method = training.method.eval()
    mean, std = (
        torch.as_tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (training.mean, training.std)
    )
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        located = method.locate(normalised)
        return method.logits(normalised).argmax(dim=1).numpy(), None if located is None else located[:, :2].numpy()


@pytest.mark.slow
def test_plain_cross_entropy_follows_the_scene() -> None:
    training, swapped = trained("ce", {})
    predicted, _ = predictions(training, swapped.images)
    assert (predicted == swapped.clean).mean() < CHANCE
    assert (predicted == swapped.scenes).mean() > 0.6


@pytest.mark.slow
def test_denll_does_not_and_finds_the_object() -> None:
    training, swapped = trained("denll", denll.ABOUT["presets"]["confounded"])
    predicted, located = predictions(training, swapped.images)
    assert located is not None
    centres = generate.mask_centres(swapped.masks)
    error = np.hypot(*(located - centres).T).mean()
    assert (predicted == swapped.clean).mean() > CHANCE + 0.1
    assert (predicted == swapped.scenes).mean() < 0.3
    assert error < 0.5 * np.hypot(*(centres - (SIDE - 1) / 2).T).mean()
