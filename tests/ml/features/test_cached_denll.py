"""DeNLL behind a backbone, end to end: composites are cached, evidence decides, models predict what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ml import methods
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import in_memory
from ml.method import ENSEMBLE
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE, reports
from tests.ml.features.conftest import check_resuming

Specs = Callable[..., TrainingSpec]
PROBES = {"host": "forward_probe", "gates": "off", "agreement": "evidence", "answer": "evidence"}
STEPS = {"host": "ce", "agreement": "evidence", "answer": "evidence"}
WHOLE = {**STEPS, "gates": "off", "answer": "mean"}  # the preset `photographs whole`
CASES = [("none", PROBES), ("none", STEPS), ("last", STEPS), ("all", STEPS), ("last", {"lm": "fixed"})]
CASES += [("all", {"lm": "fixed"}), ("all", WHOLE)]


def settings(spec: Specs, tune: str, params: dict[str, Any]) -> TrainingSpec:
    return spec(method="denll", params={"localization": "backbone", **params}, pretrained=True, tune=tune, epochs=2)


@pytest.mark.parametrize(("tune", "params"), CASES)
def test_the_published_model_predicts_of_pictures_what_was_trained_on_features(
    tune: str,
    params: dict[str, Any],
    spec: Specs,
    cached: LabeledImages,
    truth: Truth,
    pretrained: Path,
    tmp_path: Path,
) -> None:
    training = Trainer.build(
        settings(spec, tune, params), cached, truth=truth, weights=pretrained, cache=tmp_path / "set"
    )
    assert len(reports(training)) == 2
    model_archive.save(tmp_path / "model", training)
    assert truth.test_images is not None
    predictor = Predictor.load(tmp_path / "model", "cpu", "f32")
    published = predictor.predict_squares([square.numpy() for square in in_memory(truth.test_images)])

    test = training.inputs.test
    assert test is not None
    with torch.no_grad():
        of_features = training.method.eval().heads(test.unaugmented(torch.arange(len(test))))
    for name, logits in of_features.items():
        of_pictures = torch.stack([torch.from_numpy(prediction.heads[name]) for prediction in published])
        torch.testing.assert_close(of_pictures, logits.softmax(dim=1), atol=1e-2, rtol=0)
    assert all(prediction.location is not None for prediction in published)
    assert {prediction.location_source for prediction in published} == {"border_contrast"}


@pytest.mark.parametrize(("tune", "params"), CASES[:4])
def test_the_method_says_what_it_found_and_answers_by_it(
    tune: str, params: dict[str, Any], spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    training = Trainer.build(settings(spec, tune, params), cached, weights=pretrained, cache=tmp_path)
    reports(training)
    findings = training.method.findings()

    assert findings["answer"] == ("g2" if findings["labels_follow_background"] else "stack")
    assert "labels follow the background" in findings["answer_reason"]
    inputs = training.inputs.train.unaugmented(torch.arange(8))
    heads = training.method.eval().heads(inputs)
    assert torch.equal(heads[ENSEMBLE], heads["evidence"])
    assert training.label_issues() is not None


def test_a_network_that_is_trained_whole_answers_with_both(
    spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    about = methods.load("denll").ABOUT
    preset, training = about["presets"]["photographs whole"], about["training"]["photographs whole"]
    whole = spec(method="denll", params=preset, pretrained=True, **{**training, "epochs": 2})
    trainer = Trainer.build(whole, cached, weights=pretrained, cache=tmp_path)
    reports(trainer)
    assert trainer.method.findings()["answer"] == "mean"
    heads = trainer.method.eval().heads(trainer.inputs.train.unaugmented(torch.arange(8)))
    mean = (heads["g1"].softmax(dim=1) + heads["g2"].softmax(dim=1)) / 2
    torch.testing.assert_close(heads[ENSEMBLE].softmax(dim=1), mean)


@pytest.mark.parametrize("tune", ["last", "all"])
def test_a_resumed_training_draws_and_answers_the_same(
    tune: str, spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    def build(cache: str) -> Trainer:
        return Trainer.build(settings(spec, tune, STEPS), cached, weights=pretrained, cache=tmp_path / cache)

    check_resuming(build, tmp_path / "checkpoints")


def test_the_control_composes_at_the_middle_of_every_picture(
    spec: Specs, cached: LabeledImages, pretrained: Path, tmp_path: Path
) -> None:
    training = Trainer.build(settings(spec, "last", {"lm": "fixed"}), cached, weights=pretrained, cache=tmp_path)
    method_input = training.inputs.method_input
    assert method_input is not None

    places = method_input.objects(torch.rand(5, 3))

    assert torch.allclose(places, torch.tensor([(SIDE - 1) / 2, (SIDE - 1) / 2, 0.2 * SIDE]).expand(5, 3))
