"""Predicting: as the trained method does, whatever an image's size and batch, and locations on the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ml.data import dataset, decoding
from ml.method import ENSEMBLE, Method
from ml.scenes import generate
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

SIDE = 16


def train(method: str = "denll", resize: str = "squash") -> Trainer:
    drawn = generate.draw(60, seed=2, image_size=SIDE)
    pictures = dataset.LabeledImages(
        torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES
    )
    spec = TrainingSpec.model_validate(
        {"method": method, "network": "small", "image_size": SIDE, "epochs": 1, "batch_size": 16, "precision": "f32"}
        | {"resize": resize}
    )
    training = Trainer.build(spec, pictures, device="cpu", threads=1)
    for _ in training:
        pass
    return training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, Path]:
    training = train()
    folder = tmp_path_factory.mktemp("models") / "model"
    model_archive.save(folder, training)
    return training, folder


@pytest.fixture(scope="module")
def predictor(trained: tuple[Trainer, Path]) -> Predictor:
    return Predictor.load(trained[1], device="cpu", precision="f32")


def pictures(count: int, seed: int = 9) -> list[decoding.ImageArray]:
    """Pictures of many sizes, one pixel wide and high among them."""
    random = np.random.default_rng(seed)
    sizes = [
        (1, 1),
        (1, 40),
        (SIDE, SIDE),
        *((int(random.integers(5, 90)), int(random.integers(5, 90))) for _ in range(count)),
    ]
    return [random.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes[:count]]


def test_a_model_predicts_as_the_method_that_was_trained(trained: tuple[Trainer, Path], predictor: Predictor) -> None:
    training, _ = trained
    squares = generate.draw(20, seed=5, image_size=SIDE).images
    normalised = (torch.from_numpy(squares).double() / 255 - training.mean) / training.std
    method = training.method.eval()
    with torch.no_grad():
        expected = method.heads(normalised.permute(0, 3, 1, 2).float())
    predictions = predictor.predict(list(squares))

    for name, logits in expected.items():
        own = np.stack([one.heads[name] for one in predictions])
        assert np.allclose(own, logits.softmax(dim=1).numpy(), atol=1e-5)
    assert all(np.array_equal(one.probabilities, one.heads[ENSEMBLE]) for one in predictions)


def test_a_prediction_does_not_depend_on_its_batch(predictor: Predictor) -> None:
    images = pictures(40)
    together = predictor.predict(images)
    for i in (0, 1, 2, 17, 39):
        (alone,) = predictor.predict([images[i]])
        assert np.abs(alone.probabilities - together[i].probabilities).max() < 1e-5
        assert alone.location == pytest.approx(together[i].location, abs=1e-3)
    backwards = predictor.predict(images[::-1])[::-1]
    assert all(
        np.abs(one.probabilities - two.probabilities).max() < 1e-5 for one, two in zip(together, backwards, strict=True)
    )


def test_probabilities_sum_to_one_for_pictures_of_any_size(predictor: Predictor) -> None:
    predictions = predictor.predict(pictures(12))

    assert all(one.probabilities.shape == (6,) and one.probabilities.dtype == np.float32 for one in predictions)
    assert all(abs(float(one.probabilities.sum()) - 1) < 1e-5 for one in predictions)
    assert predictor.predict([]) == []


def test_locations_are_in_the_images_own_pixels(predictor: Predictor) -> None:
    (square,) = predictor.predict([np.zeros((SIDE, SIDE, 3), np.uint8)])
    (wide,) = predictor.predict([np.zeros((SIDE, 4 * SIDE, 3), np.uint8)])
    assert square.gaussian is not None
    assert wide.gaussian is not None

    assert wide.gaussian.cx == pytest.approx(4 * square.gaussian.cx, rel=1e-3)
    assert wide.gaussian.cy == pytest.approx(square.gaussian.cy, rel=1e-3)
    assert wide.gaussian.sigma_x == pytest.approx(4 * wide.gaussian.sigma_y, rel=1e-3)
    assert wide.on(predictor.geometry(4 * SIDE, SIDE)) == wide.gaussian
    (resized,) = predictor.predict_squares([predictor.square(np.zeros((SIDE, 4 * SIDE, 3), np.uint8))])
    assert resized.on(predictor.geometry(4 * SIDE, SIDE)) == wide.gaussian


def test_a_model_without_localization_has_no_location(tmp_path: Path) -> None:
    model_archive.save(tmp_path / "model", train("ce"))
    predictor = Predictor.load(tmp_path / "model", device="cpu", precision="f32")
    (prediction,) = predictor.predict(pictures(1))

    assert not predictor.localizes
    assert prediction.location is None
    assert prediction.gaussian is None


def test_a_map_comes_on_request_and_changes_no_prediction(predictor: Predictor) -> None:
    squares = [predictor.square(picture) for picture in pictures(9)]
    unmapped, mapped = predictor.predict_squares(squares), predictor.predict_squares(squares, maps=True)
    (alone,) = predictor.predict_squares(squares[4:5], maps=True)

    assert all(one.map is None for one in unmapped)
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(unmapped, mapped, strict=True))
    for one in mapped:
        assert one.map is not None
        assert one.map.min() >= 0
        assert one.map.max() == pytest.approx(1.0)
    assert alone.map is not None
    assert mapped[4].map is not None
    assert np.abs(alone.map - mapped[4].map).max() < 1e-3


def test_a_crop_model_sees_the_central_square(tmp_path: Path) -> None:
    model_archive.save(tmp_path / "model", train(resize="crop"))
    predictor = Predictor.load(tmp_path / "model", device="cpu", precision="f32")
    wide = np.random.default_rng(1).integers(0, 256, (SIDE, 3 * SIDE, 3)).astype(np.uint8)
    one, two = predictor.predict([wide, wide[:, SIDE : 2 * SIDE]])

    assert np.abs(one.probabilities - two.probabilities).max() < 1e-5
    assert one.gaussian is not None
    assert two.gaussian is not None
    assert one.gaussian.cx == pytest.approx(two.gaussian.cx + SIDE)


def test_bf16_is_used_only_where_it_chooses_the_same_classes(trained: tuple[Trainer, Path]) -> None:
    _, folder = trained
    exact = Predictor.load(folder, device="cpu", precision="f32")
    rounded = Predictor.load(folder, device="cpu", precision="bf16")
    manifest, _, check = model_archive.read(folder)
    squares = list(check.numpy())
    classes = [
        [one.probabilities.argmax() for one in predictor.predict_squares(squares)] for predictor in (exact, rounded)
    ]

    assert not exact.half
    assert classes[0] == classes[1]
    for method, agrees in ((SameInBf16(), True), (OtherInBf16(), False)):
        assert Predictor(manifest, method, torch.device("cpu"), half=True, check=check).half is agrees


class SameInBf16(Method):
    """Predicts class 0 in every precision."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([2.0, 1.0]).expand(len(images), 2)


class OtherInBf16(SameInBf16):
    """Predicts another class in bf16."""

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().logits(images)
        return logits.flip(1) if torch.is_autocast_enabled("cpu") else logits


def test_loading_leaves_global_random_state_alone(trained: tuple[Trainer, Path]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Predictor.load(trained[1], device="cpu", precision="f32")

    assert torch.equal(torch.rand(3), expected)
