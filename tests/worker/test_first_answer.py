"""A job with a pretrained network answers by a probe first, then trains; the better of the two is published."""

from __future__ import annotations

import csv
import json
import re
import uuid

import pytest

from app.db.session import transaction
from app.db.tables import Model
from tests.pretrained import install_small
from tests.worker.harness import SIDE, ServiceHarness
from tests.worker.test_children import channel, claimed, harness  # noqa: F401 - fixtures
from worker import control_channel
from worker.children import first_answer, job
from worker.children.first_answer import Stage
from worker.control_channel import ControlChannel


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
