"""A job with a pretrained network answers by a probe first, then trains; the better of the two is published."""

from __future__ import annotations

import csv
import json
import re
import uuid
from pathlib import Path

import pytest
import torch

from app.db.session import transaction
from app.db.tables import Model
from ml import methods
from ml.data.dataset import LabeledImages, Truth
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues
from ml.networks import weights
from ml.scenes import generate
from ml.training import store_choice
from ml.training.spec import DEFAULT_BACKBONE, TrainingSpec
from ml.training.trainer import Trainer
from tests.pretrained import install_small
from tests.worker.harness import SIDE, ServiceHarness
from tests.worker.test_children import channel, claimed, harness  # noqa: F401 - fixtures
from worker import control_channel
from worker.children import first_answer, job
from worker.children.first_answer import Stage
from worker.control_channel import ControlChannel

NOISES: tuple[tuple[int, generate.Noise], ...] = ((1, "confounded"), (2, "none"))  # seeds of training and test


def submit(harness: ServiceHarness) -> uuid.UUID:  # noqa: F811 - the fixture's name
    return harness.submit(harness.dataset(), pretrained=True, tune="last", epochs=2, first_answer=True)


def test_the_answer_is_there_before_training_and_both_stages_afterwards(
    harness: ServiceHarness,  # noqa: F811
    channel: ControlChannel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_small(harness.files.weights(), SIDE)
    job_id = submit(harness)
    seen = []

    def record_what_is_visible(*arguments: object) -> tuple[Stage, str]:
        """When both have been trained: what users could see since the first answer."""
        [folder] = harness.files.attempts(job_id)
        with (folder / "artifacts" / "label-issues.csv").open(newline="") as table:
            ranked = list(csv.DictReader(table))
        seen.append(
            (harness.job(job_id).metrics, ranked, json.loads((folder / "artifacts/first-answer.json").read_text()))
        )
        return choose(*arguments)  # type: ignore[arg-type]

    choose = first_answer.choose
    monkeypatch.setattr(first_answer, "choose", record_what_is_visible)
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    [(metrics, ranked, document)] = seen
    assert metrics == {"stages": [document]}
    assert document["method"] == first_answer.METHOD
    assert 0.0 <= document["noisy_validation_accuracy"] <= 1.0
    assert {"cx", "label_score"} <= set(ranked[0])
    ended = harness.job(job_id)
    assert ended.state == "succeeded", ended.error
    assert ended.metrics is not None
    first, trained = ended.metrics["stages"]
    assert (first, trained["name"], trained["method"]) == (document, "training", "ce")
    likelihoods = re.search(r"(-?[0-9.]+) for the first answer, (-?[0-9.]+) after", ended.metrics["published_reason"])
    assert likelihoods is not None, ended.metrics["published_reason"]
    better = first if float(likelihoods[1]) > float(likelihoods[2]) else trained
    assert ended.metrics["published"] == better["name"]
    with transaction(harness.engine) as session:
        assert [model.method for model in session.query(Model)] == [better["method"]]
    messages = [event.data["message"] for event in harness.history(job_id, "log")]
    assert sum(message.startswith("First answer after") for message in messages) == 1


def test_a_job_on_streamed_images_and_features_answers_alike(
    harness: ServiceHarness,  # noqa: F811
    channel: ControlChannel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features in files, and a second data set of the same pictures: every number of both stages is the same."""
    install_small(harness.files.weights(), SIDE)
    outcomes = []
    for share in (store_choice.RESIDENT_SHARE, 0.0):
        monkeypatch.setattr(store_choice, "RESIDENT_SHARE", share)
        job_id = submit(harness)
        assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
        metrics = harness.job(job_id).metrics
        assert metrics is not None
        assert metrics["images_streamed"] is (share == 0.0)
        messages = [event.data["message"] for event in harness.history(job_id, "log")]
        assert any(message.startswith("The features of the images take") for message in messages) is (share == 0.0)
        stages = [{name: value for name, value in of.items() if name != "seconds"} for of in metrics["stages"]]
        [folder] = harness.files.attempts(job_id)
        outcomes.append((stages, metrics["published"], (folder / "artifacts" / "label-issues.csv").read_text()))

    assert outcomes[0] == outcomes[1]


def test_without_held_out_images_the_training_is_published(
    harness: ServiceHarness,  # noqa: F811
    channel: ControlChannel,  # noqa: F811
) -> None:
    install_small(harness.files.weights(), SIDE)
    job_id = harness.submit(
        harness.dataset(), pretrained=True, tune="none", epochs=1, first_answer=True, validation_fraction=0.0
    )
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    metrics = harness.job(job_id).metrics
    assert metrics is not None
    assert metrics["published"] == "training"


def test_held_out_labels_that_follow_the_background_do_not_decide(tmp_path: Path) -> None:
    """They are explained better by the probe, which has learned the scenes."""
    weights.add(tmp_path / "weights", DEFAULT_BACKBONE)
    drawn = [generate.draw(300, seed=seed, image_size=64, noise=noise, noise_rate=0.4) for seed, noise in NOISES]
    images, clean = zip(*((torch.from_numpy(one.images), torch.from_numpy(one.clean)) for one in drawn), strict=True)
    labeled = LabeledImages(images[0], torch.from_numpy(drawn[0].given_labels), generate.CLASSES)
    about = methods.load("denll").ABOUT
    spec = TrainingSpec.model_validate(
        {"network": DEFAULT_BACKBONE, "pretrained": True, "image_size": 64, "batch_size": 32, "seed": 1}
        | {"params": about["presets"]["photographs"], **about["training"]["photographs"]}
    )

    def stage(name: str, settings: TrainingSpec) -> Stage:
        truth = Truth(clean[0], images[1], clean[1])
        trainer = Trainer.build(settings, labeled, truth=truth, weights=tmp_path / "weights", cache=tmp_path)
        list(trainer)
        return Stage(name, trainer, 0.0)

    first, trained = stage("first answer", first_answer.probe_spec(spec)), stage("training", spec)
    chosen, reason = first_answer.choose(first, trained)

    assert trained.summary["test_accuracy"] > first.summary["test_accuracy"]
    assert (chosen, "follow" in reason) == (trained, True)

    def precision(issues: LabelIssues | None) -> float:
        assert issues is not None
        return measure.average_precision(issues.label_score, (labeled.labels != clean[0]).numpy())

    assert precision(first_answer.ranking(first, trained)) > precision(first.issues)
