"""The paper's claim where it can be true or false: labels that name the scene, and who learns the object anyway."""

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


def trained(method: str, params: dict[str, object]) -> tuple[Trainer, generate.Pictures]:
    """A method after eight epochs on confounded labels, and pictures whose scene is always another class's."""
    pictures = generate.draw(TRAINED_ON, seed=1, image_size=SIDE, noise="confounded", noise_rate=0.4)
    labeled = dataset.LabeledImages(
        torch.from_numpy(pictures.images), torch.from_numpy(pictures.given), generate.CLASSES
    )
    spec = TrainingSpec(
        method=method, params=params, network="small", image_size=SIDE, epochs=8, batch_size=64, learning_rate=0.1,
        augmentation="flip", precision="f32", seed=1, validation_fraction=0.0,
    )  # fmt: skip
    training = Trainer.build(spec, labeled, device="cpu", threads=1)
    for _ in training:
        pass
    return training, generate.draw(TESTED_ON, seed=2, image_size=SIDE, swapped=True)


def answers(training: Trainer, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Classes (N,), and the centres x, y (N, 2) of what it takes for the object."""
    method = training.method.eval()
    mean, std = (torch.as_tensor(each, dtype=torch.float32).view(1, 3, 1, 1) for each in (training.mean, training.std))
    shown = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        located = method.locate(shown)
        return method.logits(shown).argmax(dim=1).numpy(), None if located is None else located[:, :2].numpy()


@pytest.mark.slow
def test_plain_cross_entropy_follows_the_scene() -> None:
    training, swapped = trained("ce", {})
    said, _ = answers(training, swapped.images)
    assert (said == swapped.clean).mean() < CHANCE
    assert (said == swapped.scenes).mean() > 0.6


@pytest.mark.slow
@pytest.mark.timeout(300)  # ten seconds of a core, which a loaded machine may give slowly
def test_denll_does_not_and_finds_the_object() -> None:
    training, swapped = trained("denll", denll.ABOUT["presets"]["confounded"])
    said, located = answers(training, swapped.images)
    assert located is not None
    centres = generate.middles(swapped.masks)
    error = np.hypot(*(located - centres).T).mean()
    assert (said == swapped.clean).mean() > CHANCE + 0.1
    assert (said == swapped.scenes).mean() < 0.3
    assert error < 0.5 * np.hypot(*(centres - (SIDE - 1) / 2).T).mean()
