"""Laws of predicting: the training's own answers, whatever a picture's size and company, and places on the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ml.data import dataset, decoding
from ml.scenes import generate
from ml.serving import model_archive
from ml.serving import predictor as predictors
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

SIDE = 16


def train(method: str = "denll", resize: str = "squash") -> Trainer:
    drawn = generate.draw(60, seed=2, image_size=SIDE)
    pictures = dataset.LabeledImages(torch.from_numpy(drawn.images), torch.from_numpy(drawn.given), generate.CLASSES)
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
    folder = tmp_path_factory.mktemp("bundles") / "model"
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


def test_a_bundle_answers_as_the_method_that_was_trained(trained: tuple[Trainer, Path], predictor: Predictor) -> None:
    training, _ = trained
    squares = generate.draw(20, seed=5, image_size=SIDE).images
    normalised = (torch.from_numpy(squares).double() / 255 - training.mean) / training.std
    method = training.method.eval()
    with torch.no_grad():
        expected = method.heads(normalised.permute(0, 3, 1, 2).float())
    found = predictor.predict(list(squares))

    for name, logits in expected.items():
        own = np.stack([one.heads[name] for one in found])
        assert np.allclose(own, logits.softmax(dim=1).numpy(), atol=1e-5)
    assert all(np.array_equal(one.probabilities, one.heads["answer"]) for one in found)


def test_an_answer_does_not_depend_on_its_company(predictor: Predictor) -> None:
    shown = pictures(40)
    together = predictor.predict(shown)
    for i in (0, 1, 2, 17, 39):
        (alone,) = predictor.predict([shown[i]])
        assert np.abs(alone.probabilities - together[i].probabilities).max() < 1e-5
        assert alone.place == pytest.approx(together[i].place, abs=1e-3)
    backwards = predictor.predict(shown[::-1])[::-1]
    assert all(
        np.abs(one.probabilities - two.probabilities).max() < 1e-5 for one, two in zip(together, backwards, strict=True)
    )


def test_probabilities_sum_to_one_for_pictures_of_any_size(predictor: Predictor) -> None:
    found = predictor.predict(pictures(12))

    assert all(one.probabilities.shape == (6,) and one.probabilities.dtype == np.float32 for one in found)
    assert all(abs(float(one.probabilities.sum()) - 1) < 1e-5 for one in found)
    assert predictor.predict([]) == []


def test_places_are_in_the_pictures_own_pixels(predictor: Predictor) -> None:
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


def test_a_model_without_localization_has_no_place(tmp_path: Path) -> None:
    model_archive.save(tmp_path / "model", train("ce"))
    predictor = Predictor.load(tmp_path / "model", device="cpu", precision="f32")
    (found,) = predictor.predict(pictures(1))

    assert not predictor.localizes
    assert found.place is None
    assert found.gaussian is None


def test_a_map_comes_when_asked_for_and_changes_no_answer(predictor: Predictor) -> None:
    squares = [predictor.square(each) for each in pictures(9)]
    plain, mapped = predictor.predict_squares(squares), predictor.predict_squares(squares, maps=True)
    (alone,) = predictor.predict_squares(squares[4:5], maps=True)

    assert all(one.map is None for one in plain)
    assert all(np.array_equal(a.probabilities, b.probabilities) for a, b in zip(plain, mapped, strict=True))
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


def test_bf16_is_used_only_where_it_chooses_the_same_classes(
    trained: tuple[Trainer, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = trained
    asked = Predictor.load(folder, device="cpu", precision="bf16")
    exact = Predictor.load(folder, device="cpu", precision="f32")
    assert not exact.half
    *_, check = model_archive.read(folder)
    shown = list(check.numpy())
    answers = [[one.probabilities.argmax() for one in each.predict_squares(shown)] for each in (asked, exact)]
    assert answers[0] == answers[1]

    plain = predictors.Predictor._answers

    def disagreeing(self, squares, *, half, maps=False):  # type: ignore[no-untyped-def]
        heads, places, contrasts = plain(self, squares, half=False, maps=maps)
        return ({name: each.flip(1) for name, each in heads.items()} if half else heads), places, contrasts

    monkeypatch.setattr(predictors.Predictor, "_answers", disagreeing)
    assert not Predictor.load(folder, device="cpu", precision="bf16").half


def test_loading_disturbs_nobodys_random_numbers(trained: tuple[Trainer, Path]) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    Predictor.load(trained[1], device="cpu", precision="f32")

    assert torch.equal(torch.rand(3), expected)
