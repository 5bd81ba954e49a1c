"""A job with a pretrained network answers by a probe first, then trains; the better of the two is published."""

from __future__ import annotations

import csv
import json
import re
import uuid
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.db.session import transaction
from app.db.tables import Model
from ml import networks
from ml.networks import weights
from tests.worker.harness import SIDE, ServiceHarness
from tests.worker.test_children import channel, claimed, harness  # noqa: F401 - fixtures
from worker import control_channel
from worker.children import first_answer, job
from worker.children.first_answer import Stage
from worker.control_channel import ControlChannel


def install(folder: Path) -> None:
    """Weights of `small`, whose batch normalisation has seen pictures."""
    torch.manual_seed(5)
    network = networks.build("small", 7, SIDE)
    with torch.no_grad():
        for _ in range(10):
            network.train()(torch.randn(32, 3, SIDE, SIDE))
    save_file(network.state_dict(), folder / "file.safetensors")
    facts = {"source": "a test", "licence": "none", "image_size": SIDE, "resize": "squash"}
    weights.add_file(folder, folder / "file.safetensors", "small", mean=(0.5,) * 3, std=(0.3,) * 3, **facts)


def submit(harness: ServiceHarness) -> uuid.UUID:  # noqa: F811 - the fixture's name
    return harness.submit(harness.dataset(), pretrained=True, tune="last", epochs=2, first_answer=True)


def test_the_answer_is_there_before_training_and_both_stages_afterwards(
    harness: ServiceHarness,  # noqa: F811
    channel: ControlChannel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(harness.files.weights())
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
    install(harness.files.weights())
    job_id = harness.submit(
        harness.dataset(), pretrained=True, tune="none", epochs=1, first_answer=True, validation_fraction=0.0
    )
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    metrics = harness.job(job_id).metrics
    assert metrics is not None
    assert metrics["published"] == "training"
