"""A prediction depends neither on the other images of its batch nor on other threads, in either precision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from ml.data import dataset
from ml.scenes import generate
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

SIDE = 16
TOLERANCE = {"f32": 1e-5, "bf16": 1e-2}


@pytest.fixture(scope="module", params=[("ce", "small"), ("ce", "resnet18"), ("denll", "small")], ids="-".join)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    method, network = request.param
    drawn = generate.draw(48, seed=2, image_size=SIDE)
    pictures = dataset.LabeledImages(
        torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES
    )
    spec = TrainingSpec(method=method, network=network, image_size=SIDE, epochs=1, batch_size=16, precision="f32")
    training = Trainer.build(spec, pictures, device="cpu", threads=1)
    for _ in training:
        pass
    folder = tmp_path_factory.mktemp("models") / "model"
    model_archive.save(folder, training)
    return folder


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_prediction_is_the_same_in_every_batch(published: Path, precision: str) -> None:
    predictor = Predictor.load(published, device="cpu", precision=precision)
    predictor.half = precision == "bf16"  # also where the check at load prefers f32
    predictor.optimize()
    squares = list(generate.draw(33, seed=7, image_size=SIDE).images)
    alone = np.stack([predictor.predict_squares([square])[0].probabilities for square in squares])

    for size in (2, 7, 33):
        together = [
            one for first in range(0, 33, size) for one in predictor.predict_squares(squares[first : first + size])
        ]
        apart = np.abs(np.stack([one.probabilities for one in together]) - alone).max()
        assert apart < TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_prediction_is_the_same_beside_other_threads(published: Path, precision: str) -> None:
    predictor = Predictor.load(published, device="cpu", precision=precision)
    predictor.half = precision == "bf16"
    predictor.optimize()
    batches = [list(generate.draw(4, seed=seed, image_size=SIDE).images) for seed in range(40)]
    wants_maps = [n % 3 == 0 for n in range(len(batches))]
    inputs = list(zip(batches, wants_maps, strict=True))
    alone = [predictor.predict_squares(squares, maps=maps) for squares, maps in inputs]

    with ThreadPoolExecutor(4) as threads:
        beside = list(threads.map(lambda one: predictor.predict_squares(one[0], maps=one[1]), inputs))

    for ours, expected in zip(chain.from_iterable(beside), chain.from_iterable(alone), strict=True):
        np.testing.assert_array_equal(ours.probabilities, expected.probabilities)
        assert (ours.map is None) == (expected.map is None)
        if ours.map is not None:
            np.testing.assert_array_equal(ours.map, expected.map)


def test_bf16_arithmetic_differs_from_f32(published: Path) -> None:
    """Otherwise the test above says nothing about bf16."""
    predictor = Predictor.load(published, device="cpu", precision="f32")
    squares = list(generate.draw(8, seed=8, image_size=SIDE).images)
    exact = [one.probabilities for one in predictor.predict_squares(squares)]
    predictor.half = True
    rounded = [one.probabilities for one in predictor.predict_squares(squares)]

    assert not np.array_equal(exact, rounded)
