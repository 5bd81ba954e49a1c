"""A replayed recording of a step does what the eager step does, and a step never waits for the device."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ml import methods
from ml.data.dataset import LabeledImages, Truth
from ml.method import Batch
from ml.training.spec import TrainingSpec
from ml.training.step_graphs import CudaGraphs, EagerStep
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import EXTRA_METHODS, halves, same
from tests.ml.recorder import ReplayRecorder

Specs = Callable[..., TrainingSpec]
WITHOUT_STEPS = {"probe", "forward_probe"}  # solve for their weights when an epoch begins
NAMES = [
    name
    for name in (*methods.names(), *(file.stem for file in EXTRA_METHODS.glob("*.py")))
    if name not in WITHOUT_STEPS
]
RECORDABLE = [
    {"method": "ce", "augmentation": "crop_flip"},
    {"method": "ce", "params": {"networks": 2, "agreement": "both"}, "augmentation": "crop_flip"},
    {"method": "ce", "precision": "bf16"},
    {"method": "denll", "augmentation": "crop_flip"},
    {"method": "denll", "params": {"localization": "label_free", "centre": "soft_argmax", "agreement": "one_way"}},
]
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"}


@pytest.fixture
def four_steps() -> LabeledImages:
    """87 images are trained on: three batches of 24 and one of 15."""
    images, labels = halves(97)
    return LabeledImages(images, labels, tuple("abcd"))


@pytest.mark.parametrize("changes", RECORDABLE, ids=lambda changes: " ".join(str(value) for value in changes.values()))
def test_replayed_steps_equal_eager_steps(
    changes: dict[str, Any], spec: Specs, four_steps: LabeledImages, truth: Truth
) -> None:
    """In weights, momentum, margins, generators and losses; over epochs, with a smaller last batch and agreement."""
    settings = spec(epochs=4, batch_size=24, **changes)
    written, recorded = (Trainer.build(settings, four_steps, truth=truth) for _ in range(2))
    recorder = ReplayRecorder()
    recorded.record_steps(recorder)
    list(written), list(recorded)

    assert (recorder.warmed, recorder.recorded, recorder.repeated) == (8, 4, 4)
    assert same(written.state().tensors, recorded.state().tensors) == []
    assert [r.train_loss for r in written.history] == [r.train_loss for r in recorded.history]


@pytest.mark.parametrize("method", ["ce", "denll"])
def test_a_recorded_training_resumes_in_mid_epoch(method: str, spec: Specs, four_steps: LabeledImages) -> None:
    settings = spec(method=method, epochs=2, batch_size=16, augmentation="crop_flip")
    whole = Trainer.build(settings, four_steps)
    whole.record_steps(ReplayRecorder())
    states = [whole.state() for event in whole if isinstance(event, Step)]
    for state in (states[2], states[3], states[8]):  # after a repeated step, twice, and in the second epoch
        resumed = Trainer.build(settings, four_steps)
        list(zip(resumed, range(2), strict=False))  # it had recorded something else
        resumed.record_steps(ReplayRecorder())
        resumed.restore(state)
        list(resumed)
        assert same(whole.state().tensors, resumed.state().tensors) == []


@pytest.mark.parametrize(
    "weigh",
    [lambda progress: 1.0 + progress, lambda progress: 1.0 if progress == 0.0 else 0.5, lambda progress: progress or 2],
    ids=["arithmetic", "equality", "truth"],
)
def test_a_step_that_reads_progress_is_eager(
    weigh: Callable[[Any], Any], spec: Specs, four_steps: LabeledImages, caplog: pytest.LogCaptureFixture
) -> None:
    """A recording would repeat the number, so it is refused, and the training goes on without recordings."""
    settings = spec(epochs=2, batch_size=24)
    written, recorded = (Trainer.build(settings, four_steps) for _ in range(2))
    for training in (written, recorded):
        loss = training.phases[0].loss

        def weighted(batch: Batch, loss: Any = loss) -> torch.Tensor:
            weight = weigh(batch.progress)
            weighted_loss: torch.Tensor = loss(batch) * weight
            return weighted_loss

        object.__setattr__(training.phases[0], "loss", weighted)
    recorder = ReplayRecorder()
    recorded.record_steps(recorder)
    with caplog.at_level(logging.WARNING):
        list(written), list(recorded)

    assert (recorder.recorded, recorder.repeated) == (0, 0)
    assert len(caplog.messages) == 1
    assert "one by one" in caplog.messages[0]
    assert same(written.state().tensors, recorded.state().tensors) == []


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        assert name not in WAITS, f"{name} waits for the device"
        if name.startswith("index"):
            chosen = (
                [value for value in args[1] or () if isinstance(value, torch.Tensor)] if name != "index_add" else []
            )
            assert all(value.dtype != torch.bool for value in chosen), f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


class NonWaitingStep(EagerStep):
    """Runs every step under `NoWaiting` and counts them."""

    def __init__(self) -> None:
        self.steps = 0

    def run(self, *args: Any) -> None:
        self.steps += 1
        with NoWaiting():
            super().run(*args)


@pytest.mark.parametrize("method", NAMES)
def test_no_step_waits_for_the_device(method: str, spec: Specs, four_steps: LabeledImages) -> None:
    training = Trainer.build(spec(method=method, epochs=3, batch_size=24, augmentation="crop_flip"), four_steps)
    training.step_runner = runner = NonWaitingStep()
    list(training)

    assert runner.steps == training.step >= 3 * 4


class Driver:
    """CUDA as far as capturing needs it. A pool without a graph cannot be used again, as in torch's allocator."""

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.captured: list[tuple[object, str]] = []
        driver = self

        class Graph:
            def register_generator_state(self, generator: torch.Generator) -> None: ...

            def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
                assert not driver.captured or len(driver.users), "use_count > 0"
                driver.captured.append((pool, capture_error_mode))
                driver.users.add(self)

            def capture_end(self) -> None: ...

            def replay(self) -> None: ...

        self.graph = Graph


def test_all_recordings_share_one_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch drops its recording before it makes the next; another thread may use the GPU while one is made."""
    driver, stream = Driver(), SimpleNamespace(device=torch.device("cuda", 0), wait_stream=lambda _: None)
    for name, stub in {
        "CUDAGraph": driver.graph,
        "Stream": lambda device: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "synchronize": lambda: None,
        "default_generators": [torch.Generator()],
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    recorder = CudaGraphs(torch.device("cuda", 0))
    for _ in range(3):
        replay = recorder.record(lambda: None, [])
        del replay
        gc.collect()

    assert driver.captured == [((0, 1), "thread_local")] * 3
    assert len(driver.users) == 1
