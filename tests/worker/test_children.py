"""Attempts in the process of the test: what a child does where no signal reaches - a full disk, a bad upload."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from app import logs, storage
from app.datasets import archive_check, ingest_queue, label_issues
from app.db.session import transaction
from app.db.tables import Dataset, Job, State
from app.errors import ArchiveRejected
from app.jobs import attempt, estimate, results, service
from app.settings import Settings
from app.storage import Storage
from ml.data import read_ahead
from ml.data.dataset import LabeledImages
from ml.evaluation import measure
from ml.features import similar_images
from ml.formats import dataset_index
from ml.formats import image_results as stored
from ml.serving import export_reader
from ml.serving.predictor import Predictor
from ml.training import checkpoint, store_choice
from ml.training.events import Step
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.recorder import ReplayRecorder
from tests.ml.test_randomness import of_a_gpu
from tests.worker.harness import CLASSES, SIDE, ServiceHarness, opened, pictures
from worker import control_channel
from worker.children import artifacts, ingest, job, publish
from worker.children.job_context import choose_devices
from worker.children.job_reporter import Interrupted
from worker.children.progress_meter import ProgressMeter
from worker.control_channel import ControlChannel

READERS = Path(__file__).parents[2] / ".venv-readers" / "bin" / "python"
TRAINED = 40  # images of a small training


@pytest.fixture
def harness(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceHarness]:
    with opened(tmp_path, database_url, "redis://127.0.0.1:1/0", disk_full_s=1.0) as harness:
        for module in (ingest, job):
            monkeypatch.setattr(module, "current", lambda: harness.settings)
        monkeypatch.setattr(ingest, "limit_resources", lambda _: None)  # this process is the tests' own
        monkeypatch.setattr(logs, "configure", lambda *_, **__: None)
        monkeypatch.setattr(logs, "add_file", lambda *_, **__: None)
        yield harness


class Disconnected(ControlChannel):
    """A channel without a supervisor: the end of a real one would kill this process."""

    def __init__(self) -> None:
        self.command = None

    def listen(self) -> None:
        """There is nothing to receive."""

    def beat(self) -> None:
        """Nobody receives it."""


@pytest.fixture
def channel() -> ControlChannel:
    return Disconnected()


def claimed(harness: ServiceHarness) -> tuple[uuid.UUID, int]:
    with transaction(harness.engine) as session:
        claim = attempt.claim(session, "test", 60.0)
    assert claim is not None
    return claim.id, claim.fence


def test_F15_a_full_disk_delays_a_checkpoint(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=3)
    written, write = [], checkpoint.write

    def full_twice(folder: Path, state: checkpoint.State) -> Path:
        written.append(state.step)
        if len(written) in (1, 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, state)

    monkeypatch.setattr(checkpoint, "write", full_twice)
    monkeypatch.setattr("worker.children.checkpointing.FIRST_PAUSE_S", 0.01)

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    done = harness.job(job_id)
    assert (done.state, done.error) == ("succeeded", None)
    assert any("disk is full" in event.data["message"] for event in harness.history(job_id, "log"))


def test_F15_a_disk_that_stays_full_fails_the_job(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=3)

    def full(folder: Path, state: checkpoint.State) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    monkeypatch.setattr("worker.children.checkpointing.FIRST_PAUSE_S", 0.2)

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    failed = harness.job(job_id)
    assert (failed.state, failed.error and failed.error["code"]) == ("failed", "disk_full")


def test_K3_a_checkpoint_of_another_version_starts_the_training_again(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verified one in which a part has another name; it was half restored when that was noticed."""
    job_id = harness.submit(harness.dataset(), epochs=2)
    write = checkpoint.write

    def renamed(folder: Path, state: checkpoint.State) -> Path:
        tensors = {name.replace("random/", "generators/"): tensor for name, tensor in state.tensors.items()}
        assert tensors.keys() != state.tensors.keys()
        return write(folder, checkpoint.State(tensors, state.facts))

    def drained(_: publish.Publication) -> None:
        raise Interrupted("drain")

    first = claimed(harness)
    with monkeypatch.context() as before:
        before.setattr(checkpoint, "write", renamed)
        before.setattr(publish.Publication, "write", drained)
        assert job.main(*first, None, channel) == control_channel.DRAINED
    with transaction(harness.engine) as session:
        attempt.requeue(session, *first, counts=False, limit=3, reason="drained")

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    assert harness.state(job_id) == "succeeded"
    assert any("starts again" in event.data["message"] for event in harness.history(job_id, "log"))
    assert [event.data["epoch"] for event in harness.history(job_id, "metric")][-2:] == [1, 2]


def test_a_time_limit_fails_the_job_and_keeps_a_checkpoint(harness: ServiceHarness, channel: ControlChannel) -> None:
    job_id = harness.submit(harness.dataset(), epochs=2000, limits={"max_seconds": 1})

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    failed = harness.job(job_id)
    assert (failed.state, failed.error and failed.error["code"]) == ("failed", "time_limit")
    assert failed.checkpoint_path is not None
    assert (harness.files.job(job_id) / failed.checkpoint_path / checkpoint.MANIFEST).exists()


def test_artifacts_are_listed_with_their_hashes_and_no_cell_is_a_formula(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=1)
    _, fence = claimed(harness)

    assert job.main(job_id, fence, None, channel) == control_channel.FINISHED
    folder = harness.files.attempt(job_id, fence) / "artifacts"
    entries = json.loads((folder / "manifest.json").read_text())["artifacts"]
    assert {entry["name"] for entry in entries} >= {"label-issues.csv", "metrics.jsonl", "model.zip"}
    assert all((folder / entry["name"]).stat().st_size == entry["bytes"] for entry in entries)
    lines = (folder / "label-issues.csv").read_text().splitlines()
    assert lines[0] == ",".join(label_issues.COLUMNS)
    assert len(lines) == 1 + 48


def test_a_training_says_what_it_found_of_every_image(harness: ServiceHarness, channel: ControlChannel) -> None:
    job_id = harness.submit(harness.dataset(), epochs=2, validation_fraction=0.25)
    _, fence = claimed(harness)

    assert job.main(job_id, fence, None, channel) == control_channel.FINISHED
    folder = harness.files.attempt(job_id, fence) / "artifacts"
    rows = stored.read_all(folder / stored.FILE_NAME)
    train = [row for row in rows if row.split == "train"]
    tested = rows[len(train) :]
    assert (len(train), {row.split for row in tested}) == (48, {"test"})
    assert sum(row.held_out for row in train) == 12
    assert all(row.label_score is not None and row.model is not None for row in train)
    assert all((row.label_score, row.is_label_issue) == (None, None) and row.predicted == row.model for row in tested)
    assert all(row.confidence is not None and 0 < row.confidence <= 1 for row in rows)
    neighbours = stored.read_neighbours(folder / stored.FILE_NAME, 0)
    assert len(neighbours) == similar_images.NEIGHBOURS
    assert neighbours == sorted(neighbours, key=lambda near: -near.similarity)

    # The arrays have a row for each of them, the training images in the order of the table.
    embeddings, pred_probs = (np.load(folder / name) for name in ("embeddings.npy", "pred_probs.npy"))
    assert len(embeddings) == len(pred_probs) == len(rows)
    assert np.allclose(pred_probs.sum(axis=1), 1, atol=1e-4)
    with (folder / label_issues.FILE_NAME).open(newline="") as table:
        assert [int(line["index"]) for line in csv.DictReader(table)] == [row.image for row in train]
    numbers = json.loads((folder / "figures.json").read_text())
    assert sum(map(sum, numbers["confusion"])) == numbers["images"] == len(tested)
    points = json.loads((folder / "map.json").read_text())
    assert points.pop("classes") == stored.read_classes(folder / stored.FILE_NAME)
    assert points["index"] == [row.image for row in rows]
    assert points["predicted_label"] == [row.predicted for row in rows]
    assert {len(column) for column in points.values()} == {len(rows)}


def test_a_published_model_has_an_export_that_opens_without_the_service(
    harness: ServiceHarness, channel: ControlChannel, tmp_path: Path
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=1)
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    (model,) = harness.models(job_id)

    path = harness.files.model(model.id) / storage.EXPORT
    opened = export_reader.load(path, "cpu")
    published = Predictor.load(harness.files.model(model.id), device="cpu", precision="f32")
    squares = list(export_reader.drawn_squares(opened.image_size).numpy())
    for one, two in zip(opened.predict_squares(squares), published.predict_squares(squares), strict=True):
        assert one.probabilities == pytest.approx(two.probabilities, abs=1e-5)
    assert opened.digest == model.digest
    assert model.size_bytes == sum(file.stat().st_size for file in path.parent.iterdir())


@pytest.mark.skipif(not READERS.exists(), reason="`make test` builds .venv-readers, the environment of other packages")
def test_datalab_finds_wrong_labels_by_the_arrays_of_a_job(harness: ServiceHarness, channel: ControlChannel) -> None:
    noise = {"kind": "symmetric", "rate": 0.3}
    job_id = harness.submit(harness.dataset(96), epochs=6, learning_rate=0.05, noise=noise)
    _, fence = claimed(harness)
    assert job.main(job_id, fence, None, channel) == control_channel.FINISHED
    folder = harness.files.attempt(job_id, fence) / "artifacts"

    script = Path(__file__).with_name("datalab_script.py")
    done = subprocess.run(
        [READERS, script, folder], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=250,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    scores = np.array(json.loads(done.stdout.splitlines()[-1])["scores"])
    with (folder / "injected-labels.csv").open(newline="") as table:
        injected = [int(row["index"]) for row in csv.DictReader(table)]
    wrong = np.isin(np.arange(len(scores)), injected)
    assert len(scores) == 96
    assert wrong.any()
    assert measure.auroc(scores, wrong) > 0.8


def test_INV4_artifacts_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with artifacts.replace_folder(Storage(tmp_path), tmp_path) as folder:
        (folder / "label-issues.csv").write_text("whole")

    with pytest.raises(OSError, match="cut"), artifacts.replace_folder(Storage(tmp_path), tmp_path) as folder:  # noqa: PT012  # half of it
        (folder / "label-issues.csv").write_text("hal")
        raise OSError("cut")

    assert (tmp_path / "artifacts" / "label-issues.csv").read_text() == "whole"
    with artifacts.replace_folder(Storage(tmp_path), tmp_path) as folder:
        assert list(folder.iterdir()) == []
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["manifest.json"]


def test_a_self_test_is_measured_by_the_labels_before_it(harness: ServiceHarness, channel: ControlChannel) -> None:
    """The data set's own truth is another matter: its given labels are the reference here."""
    job_id = harness.submit(
        harness.dataset(), epochs=4, noise={"kind": "symmetric", "rate": 0.3}, validation_fraction=0.25
    )
    _, fence = claimed(harness)

    assert job.main(job_id, fence, None, channel) == control_channel.FINISHED
    folder = harness.files.attempt(job_id, fence) / "artifacts"
    metrics = harness.job(job_id).metrics
    assert metrics is not None
    self_test = metrics["self_test"]
    with (folder / "injected-labels.csv").open(newline="") as file:
        changed = list(csv.DictReader(file))
    assert len(changed) == round(48 * self_test["realised_rate"]) > 5
    assert all(row["label_before"] == row["path"].split("/")[0] != row["given_label"] for row in changed)
    assert json.loads((folder / "self-test.json").read_text()) == self_test
    shares = [value for name, value in self_test.items() if name not in ("noise", "rate")]
    assert all(0 <= share <= 1 for share in shares)
    names = {entry["name"] for entry in json.loads((folder / "manifest.json").read_text())["artifacts"]}
    assert names >= {"self-test.json", "injected-labels.csv"}


def test_a_finished_training_leaves_its_figures_as_numbers_and_plots(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=1)
    _, fence = claimed(harness)

    assert job.main(job_id, fence, None, channel) == control_channel.FINISHED
    folder = harness.files.attempt(job_id, fence) / "artifacts"
    by_name = {entry["name"]: entry for entry in json.loads((folder / "manifest.json").read_text())["artifacts"]}
    numbers = json.loads((folder / "figures.json").read_text())
    assert sum(map(sum, numbers["confusion"])) == numbers["images"] == len(numbers["pictures"])
    assert len({picture["path"] for picture in numbers["pictures"]}) == numbers["images"]
    metrics = harness.job(job_id).metrics
    assert metrics is not None
    assert metrics["background_reliance"] == numbers["backgrounds"]["background_reliance"]
    assert metrics["images_streamed"] is False
    for name in ("backgrounds", "reliance", "losses", "confusion", "reliability", "attention"):
        assert by_name[f"figure-{name}.png"]["media_type"] == "image/png"
        assert by_name[f"figure-{name}.svg"]["media_type"] == "image/svg+xml"


@pytest.mark.parametrize("where", ["report_data.collect", "plots.draw"])
def test_a_figure_that_fails_fails_no_job(
    where: str, harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    job_id = harness.submit(harness.dataset(), epochs=1)
    monkeypatch.setattr(f"ml.reports.{where}", broken)

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    assert harness.state(job_id) == "succeeded"
    assert any("igures" in event.data["message"] for event in harness.history(job_id, "log"))


def test_a_job_whose_images_do_not_fit_reads_them_from_disk_and_says_so(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_choice, "RESIDENT_SHARE", 0.0)
    job_id = harness.submit(harness.dataset(), epochs=2)

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    assert harness.state(job_id) == "succeeded"
    assert (harness.job(job_id).metrics or {})["images_streamed"] is True
    messages = [event.data["message"] for event in harness.history(job_id, "log")]
    assert sum(message.startswith("The images take 0.0 GB") for message in messages) == 1


def test_the_estimate_of_a_job_streams_what_its_training_will_stream() -> None:
    assert estimate.RESIDENT_SHARE == store_choice.RESIDENT_SHARE
    assert estimate.BATCHES_AHEAD == read_ahead.AHEAD + 2


def test_scoring_a_data_set_leaves_a_row_for_each_picture(harness: ServiceHarness, channel: ControlChannel) -> None:
    dataset = harness.dataset()
    trained = harness.submit(dataset, epochs=1)
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    (model,) = harness.models(trained)
    scoring = harness.submit(dataset)
    with transaction(harness.engine) as session:
        row = session.get(Job, scoring)
        assert row is not None
        row.type, row.spec = "predict", {"model_id": str(model.id), "split": "test"}
    _, fence = claimed(harness)

    assert job.main(scoring, fence, None, channel) == control_channel.FINISHED
    assert harness.state(scoring) == "succeeded"
    table = harness.files.attempt(scoring, fence) / "artifacts" / "predictions.csv"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert {row["split"] for row in rows} == {"test"}
    assert all(0.0 < float(row["score"]) <= 1.0 for row in rows)
    agreements = [row["given_label"] == row["predicted_label"] for row in rows if row["given_label"]]
    agreement = (harness.job(scoring).metrics or {})["agreement_with_given_labels"]
    assert agreement == sum(agreements) / len(agreements)
    assert harness.models(scoring) == []


def uploaded(harness: ServiceHarness, data: bytes) -> tuple[uuid.UUID, int]:
    """A received archive whose row is claimed."""
    dataset = uuid.uuid4()
    harness.files.upload(dataset).write_bytes(data)
    with transaction(harness.engine) as session:
        session.add(Dataset(id=dataset, name="set", upload={}))
    with transaction(harness.engine) as session:
        claim = ingest_queue.claim(session, "test", 60.0)
    assert claim is not None
    return claim.id, claim.fence


def archive(entries: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in entries:
            file.writestr(name, data)
    return buffer.getvalue()


def row_of(harness: ServiceHarness, dataset: uuid.UUID) -> Any:
    with transaction(harness.engine, read_only=True) as session:
        return session.get(Dataset, dataset)


def test_a_good_archive_becomes_a_data_set_and_its_upload_is_deleted(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    dataset, fence = uploaded(harness, archive([(name, data) for name, _, data in pictures(12)]))

    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    row = row_of(harness, dataset)
    assert row.state == State.succeeded
    assert row.facts["train_images"] == 12
    assert {path.name for path in harness.files.dataset(dataset).iterdir()} >= {"archive", "index.sqlite"}
    assert not harness.files.upload(dataset).exists()
    assert len(list((harness.folder / "datasets").iterdir())) == 1


def test_a_bad_archive_is_rejected_with_a_reason_and_leaves_no_file(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    dataset, fence = uploaded(harness, archive([("../evil.png", pictures(1)[0][2])]))

    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    row = row_of(harness, dataset)
    assert row.state == State.failed
    assert row.error["code"] == "unsafe_entry_name"
    assert list((harness.folder / "datasets").iterdir()) == []
    assert not harness.files.upload(dataset).exists()


def test_what_was_too_costly_to_read_at_the_upload_is_rejected_alike(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    """The same table, small and large: the small one is refused at once, the large one when it is checked."""
    images = [(name, data) for name, _, data in pictures(4)]
    fields = {"path_column": None, "label_column": "nowhere", "clean_column": None, "annotator_columns": None}

    def with_rows(rows: int) -> bytes:
        names = [images[n % 4][0] if n < 4 else f"missing-{n}.png" for n in range(rows)]
        table = "file,kind\n" + "".join(f"{name},{n % 2}\n" for n, name in enumerate(names))
        return archive([*images, ("labels.csv", table.encode())])

    path = harness.folder / "small.zip"
    path.write_bytes(with_rows(10))
    with pytest.raises(ArchiveRejected) as refused:
        archive_check.check_upload(path, fields, harness.settings)
    path.write_bytes(with_rows(10_000))
    archive_check.check_upload(path, fields, harness.settings)

    dataset, fence = uploaded(harness, path.read_bytes())
    with transaction(harness.engine) as session:
        session.get_one(Dataset, dataset).upload = fields
    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    error = row_of(harness, dataset).error
    assert (error["code"], error["detail"]) == (refused.value.code, refused.value.detail)


def shard(images: Sequence[tuple[str, int, bytes]]) -> bytes:
    """Pictures as a Parquet shard of Hugging Face holds them, with labels as text."""
    rows = [
        {"image": {"bytes": data, "path": Path(name).name}, "label": CLASSES[label]} for name, label, data in images
    ]
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def test_shards_become_a_data_set(harness: ServiceHarness, channel: ControlChannel) -> None:
    shards = [
        ("data/train-00000-of-00001.parquet", shard(pictures(12))),
        ("data/test-00000-of-00001.parquet", shard(pictures(4))),
    ]
    dataset, fence = uploaded(harness, archive(shards))

    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    row = row_of(harness, dataset)
    assert row.state == State.succeeded, row.error
    classes = dataset_index.count_classes(harness.files.dataset(dataset))
    assert [(count.name, count.train, count.test) for count in classes] == [("circle", 6, 2), ("stripe", 6, 2)]


def test_shards_without_pyarrow_are_rejected_with_the_reason(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # its import fails, as where it is not installed
    dataset, fence = uploaded(harness, archive([("data/train-00000-of-00001.parquet", shard(pictures(4)))]))

    assert ingest.main(dataset, fence, None, channel) == control_channel.FINISHED
    error = row_of(harness, dataset).error
    assert (error["code"], "pyarrow" in error["detail"]) == ("parquet_unsupported", True)
    assert list((harness.folder / "datasets").iterdir()) == []


def test_an_attempt_that_wakes_up_late_leaves_the_files_of_the_one_after_it(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    """Both hosts write below the same data folder."""
    dataset, late = uploaded(harness, archive([(name, data) for name, _, data in pictures(12)]))
    with transaction(harness.engine) as session:
        assert ingest_queue.requeue(session, dataset, late, counts=False, limit=3, reason="test") == State.queued
        assert ingest_queue.claim(session, "another host", 60.0) is not None
    theirs = harness.files.dataset(dataset).with_name(f"{dataset}.tmp-{late + 1}") / "archive"
    theirs.parent.mkdir()
    theirs.write_bytes(b"under way")

    assert ingest.main(dataset, late, None, channel) == control_channel.FENCED_OFF
    assert theirs.read_bytes() == b"under way"
    assert harness.files.upload(dataset).exists()
    assert [path.name for path in (harness.folder / "datasets").iterdir()] == [theirs.parent.name]


def test_an_attempt_that_lost_its_claim_publishes_nothing(harness: ServiceHarness, channel: ControlChannel) -> None:
    dataset, fence = uploaded(harness, archive([(name, data) for name, _, data in pictures(12)]))
    with transaction(harness.engine) as session:
        ingest_queue.requeue(session, dataset, fence, counts=False, limit=3, reason="test")

    assert ingest.main(dataset, fence, None, channel) == control_channel.FENCED_OFF
    assert row_of(harness, dataset).state == State.queued
    assert list((harness.folder / "datasets").iterdir()) == []
    assert harness.files.upload(dataset).exists()


@pytest.mark.parametrize(
    ("host", "requested", "gpus", "devices"),
    [
        ("cuda:2,cuda:3", "auto", 1, ("cuda:2",)),
        ("cuda:2,cuda:3", "cuda", 2, ("cuda:2", "cuda:3")),
        ("cuda:2,cuda:3", "cpu", 2, ("cpu", "cpu")),
        ("cpu,cpu", "auto", 2, ("cpu", "cpu")),
        ("auto", "auto", 1, ("auto",)),
        ("auto", "cuda", 1, ("cuda",)),
        ("cpu", "cuda", 1, ("cuda",)),
    ],
)
def test_a_job_gets_the_first_of_its_hosts_devices(
    host: str, requested: str, gpus: int, devices: tuple[str, ...]
) -> None:
    job = Job(spec={"device": requested}, gpus=gpus)

    assert choose_devices(Settings(devices=host).device_names, job) == devices


@pytest.mark.parametrize(
    ("host", "status"), [("cuda", control_channel.DEVICE_FAILED), ("cpu", control_channel.FINISHED)]
)
def test_F27_no_job_trains_on_the_cpu_of_a_host_that_claims_a_gpu(
    host: str, status: int, harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left to another attempt. Where the host has no GPU and the job asks for one, that is the job's fault."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # as where the driver is too old
    harness.settings = harness.settings.model_copy(update={"devices": host})
    job_id = harness.submit(harness.dataset(), device="auto" if host == "cuda" else "cuda")

    assert job.main(*claimed(harness), None, channel) == status
    row = harness.job(job_id)
    if host == "cuda":
        (line,) = [event.data["message"] for event in harness.history(job_id, "log")]
        assert (row.state, row.error) == ("running", None)
        assert line == "This attempt ended because of its host: this machine has no CUDA device, but cuda is asked for."
    else:
        assert (row.state, row.error and row.error["code"]) == ("failed", "no_device")


def test_F18_a_gpu_that_others_fill_is_tried_again_before_the_job_fails(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    job_id = harness.submit(harness.dataset())
    monkeypatch.setattr(torch.optim.SGD, "step", full)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(1e9), int(80e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int(10e9))
    statuses = []
    for _ in range(3):
        claim = claimed(harness)
        statuses.append(job.main(*claim, None, channel))
        with transaction(harness.engine) as session:
            attempt.requeue(session, *claim, counts=True, limit=3, reason="out_of_memory")

    row = harness.job(job_id)
    assert statuses == [control_channel.OUT_OF_MEMORY, control_channel.OUT_OF_MEMORY, control_channel.FINISHED]
    assert (row.state, row.error and row.error["code"]) == ("failed", "out_of_memory")
    assert row.error is not None
    assert "while other processes held 67.9 GB of the GPU" in row.error["detail"]


class Drained(Disconnected):
    """A channel on which the supervisor drains the attempt after a few steps."""

    def __init__(self, beats: int) -> None:
        super().__init__()
        self._beats = beats

    def beat(self) -> None:
        self._beats -= 1
        if self._beats == 0:
            self.command = "drain"


def test_F29_an_attempt_on_another_kind_of_device_goes_on_and_says_so(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    job_id = harness.submit(harness.dataset(), augmentation="flip")
    first = claimed(harness)
    assert job.main(*first, None, Drained(beats=6)) == control_channel.DRAINED
    folder = harness.files.attempt(*first) / "checkpoints"
    newest = max(folder.iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    checkpoint.write(folder, of_a_gpu(checkpoint.read(newest)))
    with transaction(harness.engine) as session:
        attempt.requeue(session, *first, counts=False, limit=3, reason="drained")

    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
    lines = [event.data["message"] for event in harness.history(job_id, "log")]
    assert harness.state(job_id) == "succeeded"
    assert lines[0].startswith("Resumed at step ")
    assert lines[1].startswith("The checkpoint is of another kind of device than cpu")


def test_a_job_says_which_steps_are_not_recorded_and_why(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recorder for CPUs in place of a GPU's; the second phase of DivideMix weighs by the progress."""
    build = Trainer.build

    def recording(*arguments: Any, **options: Any) -> Trainer:
        trainer = build(*arguments, **options)
        trainer.record_steps(ReplayRecorder())
        return trainer

    monkeypatch.setattr(Trainer, "build", recording)
    for method, notes in (("ce", 0), ("dividemix", 1)):
        job_id = harness.submit(harness.dataset(), method=method, params={}, epochs=8, batch_size=8)
        assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED
        lines = [event.data["message"] for event in harness.history(job_id, "log")]
        metrics = harness.job(job_id).metrics
        assert metrics is not None
        assert len([line for line in lines if "taken one by one" in line]) == notes
        assert 0.0 < metrics["recorded_steps"] < 1.0
        assert metrics["skipped_steps"] == 0


def test_no_steps_are_recorded_after_an_attempt_that_failed(
    harness: ServiceHarness, channel: ControlChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that recordings break must not fail a job three times; an attempt that was drained is no failure."""
    build, recorded = Trainer.build, list[bool]()

    def watched(*arguments: Any, **options: Any) -> Trainer:
        recorded.append(options["cuda_graphs"])
        return build(*arguments, **options)

    monkeypatch.setattr(Trainer, "build", watched)
    for reason, beats in (("drained", 6), ("device_unavailable", 0), ("child_killed", 0)):
        harness.submit(harness.dataset(), epochs=2)
        claim = claimed(harness)
        if beats:
            assert job.main(*claim, None, Drained(beats)) == control_channel.DRAINED
        with transaction(harness.engine) as session:
            attempt.requeue(session, *claim, counts=reason == "child_killed", limit=3, reason=reason)
        assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    assert recorded == [True, True, False, False]


def small_training(method: str, *, batch_size: int, epochs: int) -> Trainer:
    """A training on `TRAINED` random images of two classes."""
    spec = TrainingSpec(method=method, network="small", image_size=SIDE, batch_size=batch_size, epochs=epochs,
                        precision="f32", validation_fraction=0.0)  # fmt: skip
    pixels = torch.randint(0, 256, (TRAINED, SIDE, SIDE, 3), dtype=torch.uint8)
    return Trainer.build(
        spec, LabeledImages(pixels, torch.arange(TRAINED) % 2, ("circle", "stripe")), device="cpu", threads=1
    )


def test_the_speed_of_a_job_counts_an_image_once_an_epoch_however_often_it_is_repeated() -> None:
    """As an epoch's own figure does; ELR+ repeats images to fill the batches of its two networks."""
    trainer = small_training("elr_plus", batch_size=32, epochs=1)
    meter, started = ProgressMeter(trainer), time.monotonic()
    steps = [event for event in trainer if isinstance(event, Step)]
    for event in steps:
        meter.add(event)
    elapsed = time.monotonic() - started
    progress = meter.progress(steps[-1])

    assert len(steps) * 32 > TRAINED
    assert progress["images_per_second"] == pytest.approx(TRAINED / elapsed, rel=0.05)


def test_the_loss_of_a_jobs_progress_is_that_of_the_steps_since_the_last_one() -> None:
    trainer = small_training("ce", batch_size=8, epochs=2)
    meter = ProgressMeter(trainer)
    losses, of_epochs = list[Any](), list[float]()
    for event in trainer:
        if isinstance(event, Step):
            losses.append(meter.progress(event)["train_loss"])
        else:
            of_epochs.append(event.train_loss)
    by_epoch = np.reshape(losses, (2, TRAINED // 8)).astype(float)  # steps of as many images
    assert by_epoch.mean(axis=1) == pytest.approx(of_epochs, rel=1e-3)
    assert len(set(losses)) == len(losses)


def test_the_last_progress_of_a_job_names_the_hardware_and_its_threads(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    job_id = harness.submit(harness.dataset(), epochs=1)
    assert job.main(*claimed(harness), None, channel) == control_channel.FINISHED

    ended = harness.job(job_id)
    assert ended.progress is not None
    assert re.fullmatch(r".+, [1-9]\d* threads?", ended.progress["hardware"])


def test_epochs_count_from_one_in_metrics_events_progress_and_files(
    harness: ServiceHarness, channel: ControlChannel
) -> None:
    """Whatever a client looks at last says the same number of the same epoch."""
    job_id = harness.submit(harness.dataset(), epochs=3)
    claim = claimed(harness)
    assert job.main(*claim, None, channel) == control_channel.FINISHED

    with transaction(harness.engine) as session:
        rows, series = results.to_columns(service.epoch_reports(session, job_id), 100)
    events = [event.data["epoch"] for event in harness.history(job_id, "metric")]
    (progress,) = {event.data["epoch"] for event in harness.history(job_id, "progress")[-1:]}
    attempts = harness.files.attempts(job_id)
    lines = (attempts[-1] / storage.ARTIFACTS / "metrics.jsonl").read_text().splitlines()
    ended = harness.job(job_id)
    assert ended.metrics is not None
    assert ended.progress is not None
    assert events == rows == series["epoch"] == [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert events[-1] == progress == ended.progress["epoch"] == ended.progress["epochs"] == ended.metrics["epochs"]
    assert (ended.metrics["test_accuracy"] or {"best_noisy_val_epoch": 1})["best_noisy_val_epoch"] in events
