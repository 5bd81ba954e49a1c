"""CE and DeNLL on a GPU: they learn in bf16, repeat bit for bit where asked, resume, record steps, and predict."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ml import errors
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import in_memory
from ml.method import Batch
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.step_graphs import GraphedStep
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import reports, same

METHODS = pytest.mark.parametrize("method", ["ce", "denll"])


def spec(**changes: Any) -> TrainingSpec:
    settings: dict[str, Any] = {"network": "resnet18", "epochs": 4, "batch_size": 128, "device": "cuda"}
    return TrainingSpec.model_validate(settings | changes)


@METHODS
def test_learns_in_bf16(method: str, labeled: LabeledImages, truth: Truth) -> None:
    training = Trainer.build(spec(method=method, precision="bf16"), labeled, truth=truth)
    reported = reports(training)

    assert training.device == torch.device("cuda", 0)
    assert all(report.finite for report in reported)
    assert reported[-1].test["answer"].accuracy > 0.8
    assert {parameter.dtype for parameter in training.method.parameters()} == {torch.float32}


@METHODS
def test_a_recorded_step_is_the_step(method: str, labeled: LabeledImages, truth: Truth) -> None:
    settings = spec(method=method, precision="bf16", deterministic=True, augmentation="crop_flip")
    written = Trainer.build(settings, labeled, truth=truth, cuda_graphs=False)
    recorded = Trainer.build(settings, labeled, truth=truth)
    list(written), list(recorded)

    assert isinstance(recorded.step_runner, GraphedStep)
    assert recorded.step_runner.refused == {}
    assert recorded.step_runner.recorded_share() > 0.8  # it really was recorded
    assert same(written.state().tensors, recorded.state().tensors) == []


@METHODS
def test_images_in_the_hosts_memory_train_to_the_same_bits(method: str, labeled: LabeledImages, truth: Truth) -> None:
    """As those on the GPU; and no step is recorded, because each waits for its images."""
    settings = spec(method=method, deterministic=True, augmentation="crop_flip", epochs=2)
    resident = Trainer.build(settings, labeled, truth=truth)
    streamed = Trainer.build(settings, labeled, truth=truth, resident_bytes=0)
    list(resident), list(streamed)

    assert (resident.inputs.streamed, streamed.inputs.streamed) == (False, True)
    assert not isinstance(streamed.step_runner, GraphedStep)
    assert "waits for its images" in streamed.step_runner.notices[0]
    assert same(resident.state().tensors, streamed.state().tensors) == []


@pytest.mark.parametrize(
    "weigh",
    [lambda batch: 1.0 + batch.progress, lambda batch: 1.0 if float(batch.labels.sum()) >= 0 else 2.0],
    ids=["progress", "a wait"],
)
def test_a_recording_that_breaks_changes_nothing(weigh: Callable[[Batch], float], labeled: LabeledImages) -> None:
    """Generators above all: torch leaves those of a broken capture unable to draw."""
    settings = spec(epochs=2, deterministic=True, augmentation="crop_flip")
    written, recorded = (Trainer.build(settings, labeled, cuda_graphs=cuda_graphs) for cuda_graphs in (False, True))
    for training in (written, recorded):
        plain = training.phases[0].loss

        def weighted(batch: Batch, plain: Any = plain) -> torch.Tensor:
            loss: torch.Tensor = plain(batch)
            return loss * weigh(batch)

        object.__setattr__(training.phases[0], "loss", weighted)
    list(written), list(recorded)

    assert isinstance(recorded.step_runner, GraphedStep)
    assert list(recorded.step_runner.refused) == [0]
    assert same(written.state().tensors, recorded.state().tensors) == []


@METHODS
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_deterministic_training_resumes_bit_for_bit(method: str, cuda_graphs: bool, labeled: LabeledImages) -> None:
    settings = spec(method=method, deterministic=True, epochs=2)
    whole = Trainer.build(settings, labeled, cuda_graphs=cuda_graphs)
    states = [whole.state() for event in whole if isinstance(event, Step)]
    resumed = Trainer.build(settings, labeled, cuda_graphs=cuda_graphs)
    resumed.restore(states[len(states) // 3])
    list(resumed)

    assert same(whole.state().tensors, resumed.state().tensors) == []


@METHODS
def test_fp16_is_scaled_and_recorded(method: str, labeled: LabeledImages) -> None:
    """As a GPU without bf16 trains: with the same bits from recordings, also where steps are skipped."""
    settings = spec(method=method, precision="fp16", deterministic=True)
    written, recorded = (Trainer.build(settings, labeled, cuda_graphs=cuda_graphs) for cuda_graphs in (False, True))
    list(written), list(recorded)

    assert recorded.step_runner.recorded_share() > 0.5
    assert written.history[-1].train_loss < written.history[0].train_loss
    assert same(written.state().tensors, recorded.state().tensors) == []


def test_two_networks_run_on_two_streams(labeled: LabeledImages) -> None:
    """And come to what they come to one after the other."""
    settings = spec(method="ce", params={"networks": 2, "agreement": "both"}, deterministic=True)
    written, recorded = (Trainer.build(settings, labeled, cuda_graphs=cuda_graphs) for cuda_graphs in (False, True))
    list(written), list(recorded)

    assert recorded.step_runner.notices == []
    assert same(written.state().tensors, recorded.state().tensors) == []


def test_recordings_of_many_epochs_need_the_memory_of_one(labeled: LabeledImages) -> None:
    training = Trainer.build(spec(precision="bf16", epochs=8), labeled)
    reserved = [torch.cuda.memory_reserved() for event in training if isinstance(event, EpochReport)]

    assert isinstance(training.step_runner, GraphedStep)
    assert training.step_runner.refused == {}
    assert reserved[-1] <= reserved[2]


@pytest.mark.parametrize(("written", "restored"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_F29_a_training_goes_on_on_another_kind_of_device(written: str, restored: str, labeled: LabeledImages) -> None:
    settings = spec(network="small", epochs=2, augmentation="crop_flip", precision="f32")
    whole, resumed = (Trainer.build(settings, labeled, device=device) for device in (written, restored))
    states = [whole.state(on_device=True) for event in whole if isinstance(event, Step)]
    assert not resumed.restore(states[5].on_cpu())
    assert same(resumed.state().under("method/"), states[5].on_cpu().under("method/")) == []
    list(resumed)

    assert len(resumed.history) == 2


def test_F18_what_cannot_fit_is_refused_and_the_memory_is_free_again() -> None:
    images = torch.zeros(1, 256, 256, 3, dtype=torch.uint8).expand(8192, -1, -1, -1)
    data = LabeledImages(images, torch.arange(8192) % 10, tuple("abcdefghij"))
    huge = spec(network="resnet152", image_size=256, batch_size=8192, augmentation="none", validation_fraction=0.0)
    before = torch.cuda.memory_allocated()
    with pytest.raises(errors.OutOfMemory, match="batch_size"):
        next(iter(Trainer.build(huge, data)))

    assert torch.cuda.memory_allocated() - before < 2**20


def test_a_step_takes_about_the_memory_that_was_predicted(labeled: LabeledImages) -> None:
    training = Trainer.build(spec(precision="bf16", batch_size=1024), labeled)
    training.check_memory()
    assert training.memory is not None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    next(iter(training))
    used = torch.cuda.max_memory_allocated() - before

    assert 0.7 < used / training.memory.need.at(1024) < 1.5


def test_predicts_in_bf16(labeled: LabeledImages, truth: Truth, tmp_path: Path) -> None:
    """Top-1 as in f32 at load, and no answer depends on its companions by more than 1e-2."""
    training = Trainer.build(spec(precision="bf16"), labeled, truth=truth)
    list(training)
    model_archive.save(tmp_path / "model", training)
    predictor = Predictor.load(tmp_path / "model", "cuda", "bf16")
    squares = list(in_memory(labeled.images)[:65].numpy())
    together, alone = predictor.predict_squares(squares), predictor.predict_squares(squares[7:8])[0]

    assert predictor.half
    assert abs(together[7].probabilities - alone.probabilities).max() < 1e-2


def test_t7_is_measured() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu"], stdout=subprocess.PIPE, text=True, check=True, timeout=600
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    assert all(line["measured"] > 0 for line in lines)
    assert any(line["cuda_graphs"] for line in lines)


def test_events_come_in_order(labeled: LabeledImages) -> None:
    """Recorded steps yield the events that written ones do."""
    events = list(Trainer.build(spec(epochs=1), labeled))

    assert isinstance(events[-1], EpochReport)
    assert [event.total_step for event in events[:-1] if isinstance(event, Step)] == list(range(1, len(events)))
