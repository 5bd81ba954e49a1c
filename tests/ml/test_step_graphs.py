"""A replayed recording of a step does what the eager step does, and a step never waits for the device."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.utils._python_dispatch import TorchDispatchMode

from ml import methods
from ml.data import autoaugment
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import StoredRows, in_memory
from ml.distributed.process_group import ProcessGroup
from ml.method import Batch
from ml.training import step_graphs, trainer
from ml.training.spec import TrainingSpec
from ml.training.step_graphs import CudaGraphs, EagerStep, GraphedStep
from ml.training.step_state import Snapshot, StepState
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import EXTRA_METHODS, SIDE, halves, same
from tests.ml.recorder import CaptureMode, ReplayRecorder

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
NEEDS_PROGRESS = {"dividemix", "elr_plus", "pes_semi"}  # in the loss of a phase
COUNTED = [1.0]
COPIES = {"lift_fresh"}  # of torch.tensor and of lists of positions
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

    # of 16 steps with two batch shapes, the first of each is eager, the second recorded, the third checked; one of each
    # is recorded anew where agreement begins
    agrees = changes["method"] == "denll" or "params" in changes
    assert recorder.recorded == 2 + agrees
    assert recorded.step_runner.replayed == 16 - 6 - 2 * agrees
    assert (recorded.step_runner.notices, recorder.released) == ([], 0)
    assert same(written.state().tensors, recorded.state().tensors) == []
    assert [r.train_loss for r in written.history] == [r.train_loss for r in recorded.history]


@pytest.mark.parametrize("method", NAMES)
def test_recorded_steps_of_every_method_equal_eager_ones(
    method: str, spec: Specs, four_steps: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over epochs, phases and passes; where a step cannot be recorded, its phase is eager and says so."""
    # as on a GPU, which does not know what it has drawn
    monkeypatch.setattr(autoaugment, "_run_stage", lambda planes, operations, stage, _: stage(planes, operations))
    settings = spec(method=method, epochs=7, batch_size=24, augmentation="crop_flip")
    written, recorded = (Trainer.build(settings, four_steps) for _ in range(2))
    recorded.record_steps(ReplayRecorder())
    list(written), list(recorded)

    assert same(written.state().tensors, recorded.state().tensors) == []
    runner = recorded.step_runner
    assert isinstance(runner, GraphedStep)
    assert len(runner.notices) == len(runner.refused)
    assert all("changes from step to step" in reason for reason in runner.refused.values())
    assert bool(runner.refused) == (method in NEEDS_PROGRESS)
    assert runner.replayed > 0 or method in NEEDS_PROGRESS


def test_recordings_serve_all_epochs(spec: Specs, four_steps: LabeledImages) -> None:
    """However many there are; and a buffer that is replaced between epochs makes them invalid."""
    recorders = []
    for epochs, replaced in ((3, False), (9, False), (9, True)):
        written, recorded = (Trainer.build(spec(epochs=epochs, batch_size=24), four_steps) for _ in range(2))
        recorded.record_steps(recorder := ReplayRecorder())
        recorders.append(recorder)
        for training in (written, recorded):
            for event in training:
                if replaced and isinstance(event, EpochReport):
                    normalisation = next(one for one in training.method.modules() if isinstance(one, nn.BatchNorm2d))
                    assert normalisation.running_mean is not None
                    normalisation.running_mean = normalisation.running_mean.clone()
        assert same(written.state().tensors, recorded.state().tensors) == []

    assert [recorder.recorded for recorder in recorders[:2]] == [2, 2]
    assert recorders[2].recorded > 9


def test_a_recording_that_repeats_a_number_wrongly_is_refused(spec: Specs, four_steps: LabeledImages) -> None:
    """A loss that counts in Python: the check on the next images shows it, and no result changes."""
    written, recorded = (Trainer.build(spec(epochs=2, batch_size=24), four_steps) for _ in range(2))
    for training in (written, recorded):
        loss = training.phases[0].loss

        def weighted(batch: Batch, loss: Any = loss) -> torch.Tensor:
            weight: torch.Tensor = loss(batch) * COUNTED[0]
            return weight

        object.__setattr__(training.phases[0], "loss", weighted)
    recorded.record_steps(recorder := ReplayRecorder())
    for training in (written, recorded):
        for number, _ in enumerate(training):
            COUNTED[0] = 1.0 + number

        COUNTED[0] = 1.0
    runner = recorded.step_runner

    assert (recorder.recorded, recorder.repeated, runner.replayed, recorder.released) == (1, 1, 0, 1)
    assert "it is not the eager step" in runner.notices[0]
    assert same(written.state().tensors, recorded.state().tensors) == []


def test_a_step_that_replaces_its_tensors_is_refused(spec: Specs, four_steps: LabeledImages) -> None:
    """A recording would work on the first ones for ever."""
    written, recorded = (Trainer.build(spec(epochs=2, batch_size=24), four_steps) for _ in range(2))
    recorded.record_steps(recorder := ReplayRecorder())
    for training in (written, recorded):
        normalisation = next(one for one in training.method.modules() if isinstance(one, nn.BatchNorm2d))

        def replace_mean(_: Batch, layer: nn.BatchNorm2d = normalisation) -> None:
            assert layer.running_mean is not None
            layer.running_mean = layer.running_mean + 0.5

        object.__setattr__(training.phases[0], "after_step", replace_mean)
        list(training)

    assert (recorder.recorded, recorded.step_runner.replayed) == (0, 0)
    assert "replaces the tensors" in recorded.step_runner.notices[0]
    assert same(written.state().tensors, recorded.state().tensors) == []


class NoisyRecorder(ReplayRecorder):
    """What it repeats differs by a share of each weight's change, as other algorithms round."""

    def __init__(self, training: Trainer, share: float) -> None:
        super().__init__()
        self.training, self.share = training, share

    def record(self, work: Callable[[], object], generators: Any) -> Callable[[], object]:
        before = [weight.detach().clone() for weight in self.training.method.parameters()]
        again = super().record(work, generators)
        with torch.no_grad():
            for weight, old in zip(self.training.method.parameters(), before, strict=True):
                weight.add_(self.share * (weight - old))
        return again


@pytest.mark.parametrize(
    ("share", "exact", "refused"), [(1e-3, False, False), (0.1, False, True), (1e-3, True, True), (0.0, True, False)]
)
def test_recorded_steps_may_differ_by_rounding_alone(
    share: float, exact: bool, refused: bool, spec: Specs, four_steps: LabeledImages
) -> None:
    """And where results must repeat, not by a bit."""
    training = Trainer.build(spec(epochs=2, batch_size=24), four_steps)
    training.record_steps(NoisyRecorder(training, share))
    training.step_runner._exact = exact  # type: ignore[attr-defined]  # on a GPU, what the spec says of determinism
    list(training)

    assert bool(training.step_runner.notices) == refused
    assert (training.step_runner.replayed > 0) == (not refused)


def test_recordings_need_room(spec: Specs, four_steps: LabeledImages, monkeypatch: pytest.MonkeyPatch) -> None:
    """For their own memory and for the check; without it, steps are eager."""
    settings = spec(epochs=2, batch_size=24)
    written = Trainer.build(settings, four_steps)
    list(written)
    for failing in ("room", "first copy", "second copy"):
        recorded = Trainer.build(settings, four_steps)
        recorded.record_steps(recorder := ReplayRecorder())
        if failing == "room":
            monkeypatch.setattr(trainer, "RECORDING_ROOM", 1e9)
        else:
            fail_at(recorded.step_runner._state, 1 + (failing == "second copy"))  # type: ignore[attr-defined]
        list(recorded)
        monkeypatch.undo()

        assert (recorder.recorded, recorded.step_runner.replayed) == (0, 0), failing
        assert "memory" in recorded.step_runner.notices[0]
        assert same(written.state().tensors, recorded.state().tensors) == []


def fail_at(state: StepState, number: int) -> None:
    """Let copying the state run out of memory at its `number`-th call."""
    copy, calls = state.copy, iter(range(1, 1000))

    def full() -> Snapshot:
        if next(calls) == number:
            raise torch.OutOfMemoryError
        return copy()

    state.copy = full  # type: ignore[method-assign]


def test_only_the_last_recordings_are_retained(
    spec: Specs, four_steps: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_graphs, "MOST_RECORDINGS", 1)
    written, recorded = (Trainer.build(spec(epochs=4, batch_size=24), four_steps) for _ in range(2))
    recorded.record_steps(ReplayRecorder())
    list(written), list(recorded)

    assert len(recorded.step_runner._recordings) <= 1  # type: ignore[attr-defined]
    assert same(written.state().tensors, recorded.state().tensors) == []


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
    assert caplog.messages == recorded.step_runner.notices
    assert same(written.state().tensors, recorded.state().tensors) == []


def test_what_cannot_be_recorded_at_all_is_said(spec: Specs, four_steps: LabeledImages, tmp_path: Path) -> None:
    """Before the first step: images that are read from disk, and several processes."""
    stored = StoredRows.write_unnamed([in_memory(four_steps.images).numpy()], SIDE, tmp_path)
    streamed = Trainer.build(spec(), replace(four_steps, images=stored), resident_bytes=0)
    streamed.record_on_gpu()
    shared = Trainer.build(spec(), four_steps)
    shared._group = ProcessGroup(0, 2, torch.device("cpu"), FileStore(str(tmp_path / "store"), 1))
    shared.record_on_gpu()

    for training, reason in ((streamed, "each waits for its images"), (shared, "exchange data within a step")):
        assert not isinstance(training.step_runner, GraphedStep)
        assert [reason in notice for notice in training.step_runner.notices] == [True]


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would have to be waited for; with `copies`, also where numbers of Python are copied to it."""

    def __init__(self, *, copies: bool = False) -> None:
        super().__init__()
        self.forbidden = WAITS | COPIES if copies else WAITS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        assert name not in self.forbidden, f"{name} waits for the device"
        if name.startswith("index"):
            chosen = (
                [value for value in args[1] or () if isinstance(value, torch.Tensor)] if name != "index_add" else []
            )
            assert all(value.dtype != torch.bool for value in chosen), f"{name} with a mask waits for the device"
        return func(*args, **(kwargs or {}))


class NonWaitingStep(EagerStep):
    """Runs every step under `NoWaiting`; the first ones may copy constants to the device, which stay there."""

    def run(self, *args: Any) -> None:
        with NoWaiting(copies=self.steps >= 8):
            super().run(*args)


@pytest.mark.parametrize(
    ("method", "precision"), [*((name, "f32") for name in NAMES), *((name, "fp16") for name in ("ce", "denll", "sop"))]
)
def test_no_step_waits_for_the_device(
    method: str, precision: str, spec: Specs, four_steps: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoaugment, "_run_stage", lambda planes, operations, stage, _: stage(planes, operations))
    training = Trainer.build(
        spec(method=method, epochs=3, batch_size=24, augmentation="crop_flip", precision=precision), four_steps
    )
    training.step_runner = runner = NonWaitingStep()
    list(training)

    assert runner.steps == training.step >= 3 * 4


class Driver:
    """CUDA as far as capturing needs it. A pool without a graph cannot be used again, as in torch's allocator."""

    def __init__(self) -> None:
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.captured: list[tuple[object, str]] = []
        self.ended = self.pools = 0
        self.restored: list[str] = []
        self.generator = SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=self.restored.append)
        driver = self

        class Graph:
            def register_generator_state(self, generator: torch.Generator) -> None: ...

            def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
                is_new = pool not in [used for used, _ in driver.captured]
                assert is_new or len(driver.users), "use_count > 0"
                driver.captured.append((pool, capture_error_mode))
                driver.users.add(self)

            def capture_end(self) -> None:
                driver.ended += 1

            def replay(self) -> None: ...

        self.graph = Graph

    def new_pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver, stream = Driver(), SimpleNamespace(device=torch.device("cuda", 0), wait_stream=lambda _: None)
    for name, stub in {
        "CUDAGraph": driver.graph,
        "Stream": lambda device: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "synchronize": lambda: None,
        "default_generators": [driver.generator],
        "graph_pool_handle": driver.new_pool,
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    return driver


def test_all_recordings_share_one_pool(driver: Driver) -> None:
    """Whether the ones before still exist or not; another thread may use the GPU while one is made."""
    recorder = CudaGraphs(torch.device("cuda", 0))
    for _ in range(3):
        replay = recorder.record(lambda: None, [])
        del replay
        gc.collect()

    assert driver.captured == [((0, 1), "thread_local")] * 3
    assert len(driver.users) == 1


class CapturingGraph:
    """A CUDA graph of operations on a CPU: see `CaptureMode`. Generators advance when it is replayed, as on a GPU."""

    made = 0

    def __init__(self) -> None:
        self.tape, self.generators = CaptureMode(), [torch.default_generator]

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        CapturingGraph.made += 1
        self.states = [generator.get_state() for generator in self.generators]
        self.tape.__enter__()

    def capture_end(self) -> None:
        self.tape.__exit__(None, None, None)
        self.tape.undo()
        for generator, state in zip(self.generators, self.states, strict=True):
            generator.set_state(state)

    def replay(self) -> None:
        self.tape.again()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ce", "params": {"networks": 2, "agreement": "both"}, "network": "efficientnet_lite0"},  # dropout
        {"method": "denll"},
        {"method": "ce", "precision": "fp16"},
    ],
    ids=["two networks", "denll", "fp16"],
)
def test_cuda_graphs_record_a_training(
    changes: dict[str, Any], spec: Specs, four_steps: LabeledImages, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a driver that captures operations on a CPU: what `CudaGraphs` does around them leaves the bits alone."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", CapturingGraph)
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.default_generator])
    monkeypatch.setattr(CapturingGraph, "made", 0)
    settings = spec(epochs=4, batch_size=24, augmentation="crop_flip", **changes)
    written, recorded = (Trainer.build(settings, four_steps) for _ in range(2))
    recorded.record_on_gpu()
    list(written), list(recorded)

    assert recorded.step_runner.notices == []
    assert recorded.step_runner.replayed > 4
    assert 2 <= CapturingGraph.made <= 4
    assert same(written.state().tensors, recorded.state().tensors) == []


def test_a_pool_that_is_left_is_not_used_again(driver: Driver) -> None:
    """After the recordings of a phase were refused, those of the next one have a pool of their own."""
    recorder = CudaGraphs(torch.device("cuda", 0))
    recorder.record(lambda: None, [])
    recorder.release()
    gc.collect()
    assert len(driver.users) == 0
    recorder.record(lambda: None, [])

    assert driver.captured == [((0, 1), "thread_local"), ((0, 2), "thread_local")]


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted when stream is capturing"), TypeError("no")])
def test_a_broken_capture_ends_and_is_no_recording(error: Exception, driver: Driver) -> None:
    def work() -> None:
        raise error

    recorder = CudaGraphs(torch.device("cuda", 0))
    with pytest.raises(step_graphs.Unrecordable, match=str(error)):
        recorder.record(work, [])

    assert (driver.ended, driver.restored) == (1, ["state"])
