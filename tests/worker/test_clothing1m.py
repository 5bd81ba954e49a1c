"""A set in Clothing1M's layout, streamed: by the command line as it is, and by the service from the converted zip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.db.session import transaction
from app.db.tables import Dataset
from ml import __main__ as command
from ml.training import store_choice
from tests.worker.harness import CLASSES, SIDE, ServiceHarness, pictures
from tests.worker.test_children import channel, claimed, harness, row_of, uploaded  # noqa: F401 - fixtures
from worker import control_channel
from worker.children import ingest, job
from worker.control_channel import ControlChannel

TRAIN, TESTS = 60, 12
SPEC = {"method": "ce", "network": "small", "image-size": SIDE, "batch-size": 16, "epochs": 2, "seed": 1}


def draw(folder: Path) -> Path:
    """Key lists and tables of labels beside the images; every fifth label of a training image is wrong."""
    keys, noisy, clean = [], [], []
    for number, (_, label, data) in enumerate(pictures(TRAIN + TESTS)):
        key = f"images/{number % 3}/{number:04}.png"
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
        keys.append(key)
        noisy.append(f"{key} {(label + (number % 5 == 0)) % len(CLASSES)}\n")
        clean.append(f"{key} {label}\n")
    keys[:TRAIN] = sorted(keys[:TRAIN])
    keys[TRAIN:] = sorted(keys[TRAIN:])
    lists = folder / "annotations"
    lists.mkdir()
    (lists / "noisy_train_key_list.txt").write_text("\n".join(keys[:TRAIN]) + "\n")
    (lists / "clean_test_key_list.txt").write_text("\n".join(keys[TRAIN:]) + "\n")
    (lists / "noisy_label_kv.txt").write_text("".join(noisy))
    (lists / "clean_label_kv.txt").write_text("".join(clean))
    (lists / "category_names_eng.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def test_clothing1m_streams_to_the_same_training_on_the_command_line_and_in_the_service(
    harness: ServiceHarness,  # noqa: F811
    channel: ControlChannel,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store_choice, "RESIDENT_SHARE", 0.0)
    folder, out = draw(tmp_path / "clothing"), tmp_path / "out"
    options = [f"--{name}={value}" for name, value in SPEC.items()]
    assert command.main(["train", str(folder), "--out", str(out), "--precision=f32", *options]) == 0
    assert "read while they are needed" in capsys.readouterr().err
    assert command.main(["convert", str(folder), str(tmp_path / "set.zip")]) == 0

    dataset, fence = uploaded(harness, (tmp_path / "set.zip").read_bytes())
    with transaction(harness.engine) as session:
        session.get_one(Dataset, dataset).upload = {"clean_column": "clean"}
    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    facts = row_of(harness, dataset).facts
    assert (facts["train_images"], facts["test_images"], facts["classes"]) == (TRAIN, TESTS, len(CLASSES))
    assert facts["noise_rate"] == pytest.approx(0.2)
    job_id = harness.submit(dataset, epochs=2)
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    metrics = harness.job(job_id).metrics or {}
    assert metrics["images_streamed"] is True
    [attempt] = harness.files.attempts(job_id)
    of_service, of_command = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (attempt / "artifacts" / "metrics.jsonl", out / "epochs.jsonl")
    )
    assert [(epoch["train_loss"], epoch["test"]) for epoch in of_service] == [
        (epoch["train_loss"], epoch["test"]) for epoch in of_command
    ]
