"""A training: an iterable of events that can be stopped, snapshot and resumed at any step, bit for bit on a CPU.

It owns time - order, precision, schedules, generators, state - and never asks which method it drives. It knows no
database, no folder and no cancellation: the caller simply stops asking for the next event.

Shapes: `N` images of the set, `M` of them trained on (the rest is held out), `B` batch, `C` classes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from ml import errors, method
from ml.data import dataset, image_store
from ml.distributed import process_group
from ml.evaluation import measure, ranking
from ml.method import ENSEMBLE
from ml.training import (
    batches,
    checkpoint,
    devices,
    memory_check,
    phase_schedule,
    preparation,
    randomness,
    sampler,
    step_graphs,
)
from ml.training.events import EVALUATION_SPLITS, EpochReport, Step
from ml.training.spec import TrainingSpec

if TYPE_CHECKING:
    from ml.data.dataset import LabeledImages, Truth

__all__ = ("EpochReport", "Step", "Trainer")

WATCHED_STEPS = 50  # the device is asked this often whether the loss is still finite


class Trainer:
    """Iterate to train; `state` and `restore` between any two events."""

    def __init__(
        self,
        spec: TrainingSpec,
        images: LabeledImages,
        truth: Truth | None,
        device: torch.device,
        weights: Path | None,
        group: process_group.ProcessGroup | None,
    ) -> None:
        """Use `build`."""
        self.spec, self.device, self.classes = spec, device, tuple(images.classes)
        self.config_hash, self.data_hash = spec.digest(), preparation.data_hash(images)
        # int64 (N,) as trained on; the realised rate of injected noise, or None
        self.labels, self.noise_rate = preparation.noisy_labels(spec, images)
        trained, self.held_out = dataset.split(len(self.labels), spec.validation_fraction, spec.seed)
        self.mean, self.std = image_store.statistics(images.images, trained)
        self._half = devices.half_precision(spec.precision, device)
        self._random = randomness.Randomness(spec.seed, device)
        pixels = preparation.pixels(images, truth, self.mean, self.std, device)
        given, rows = self.labels.to(device), trained.to(device)
        self.log = ranking.MarginTracker(given, len(self.classes))
        self.batches = batches.Batches(pixels, given, rows, spec.augmentation, self._random.generator, self.log)
        self._parts = preparation.parts(truth, pixels, self.labels, self.held_out, images.labels.cpu())
        self._group = group
        self._networks = preparation.FreshNetworks(spec, len(self.classes), weights, device, group)
        self.method = preparation.build_method(spec, self.batches.labels, self._networks, device)
        self._course = phase_schedule.PhaseSchedule(self.method.phases(preparation.recipe(spec)))
        self.phases, self.epochs = self._course.phases, self._course.epochs
        self.history: list[EpochReport] = []
        self.epoch = self.step = 0  # the epoch that is running or comes next; steps taken so far
        self._entered = -1  # number of the phase entered last
        self._optimizers = self._course.optimizers(self._entered)
        self._timetable: sampler.EpochSampler | None = None  # of this epoch; None between epochs
        self._position = 0  # steps taken in this epoch
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._seconds = 0.0  # spent in this epoch
        self._stepper: step_graphs.EagerStep | step_graphs.GraphedStep = step_graphs.EagerStep()
        self._room: tuple[int, memory_check.MemoryEstimate] | None = None  # for which phase, and what it needs

    @classmethod
    def build(
        cls,
        spec: TrainingSpec,
        images: LabeledImages,
        *,
        truth: Truth | None = None,
        device: str | None = None,
        threads: int | None = None,
        weights: Path | None = None,
        cuda_graphs: bool = False,
        group: process_group.ProcessGroup | None = None,
    ) -> Self:
        """A training ready to iterate. `device` overrides the spec's; `weights` is the folder of pretrained ones.

        All members of a `group` build the same training and iterate it alike; each computes its share of the networks.
        `cuda_graphs` repeats recorded steps (`ml.training.step_graphs`) where one process trains on a GPU; it means
        nothing elsewhere and is no part of the spec, since the result is the same.
        """
        place = devices.resolve(device or spec.device)
        if threads is not None:
            torch.set_num_threads(threads)
        devices.settle(place, exact=spec.precision == "f32", deterministic=spec.deterministic)
        preparation.check(spec, images)
        with devices.bounded_memory("preparing the training"):
            training = cls(spec, images, truth, place, weights, group)
            if cuda_graphs and group is None and place.type == "cuda":
                training.record_steps(step_graphs.CudaGraphs(place))
            return training

    def __iter__(self) -> Iterator[Step | EpochReport]:
        """Train until the end, or until nobody asks; asking again goes on from there."""
        while self.epoch < self.epochs:
            with self._at_work("preparing an epoch"):
                phase, plan = self._begin_epoch()
                self._check_room(phase, plan)
            while self._position < plan.steps:
                with self._at_work("a training step"):
                    self._take_step(phase, plan.slot(self._position))
                yield Step(self.epoch, phase.name, self._position - 1, plan.steps, self.step)
            with self._at_work("measuring"):
                report = self._end_epoch(phase, plan)
            yield report

    def run_follower(self) -> None:
        """As another rank than the first of the group: begin where that one begins, train to the end, and part."""
        assert self._group is not None
        if (chosen := self._group.broadcast_object()) is not None:
            self.restore(checkpoint.read(Path(chosen)))
        for _ in self:
            pass
        self._group.leave()

    def _begin_epoch(self) -> tuple[method.Phase, sampler.EpochSampler]:
        """The phase of this epoch and its timetable; an epoch that has begun before is only picked up."""
        number = self._course.number(self.epoch)
        phase = self.phases[number]
        if self._timetable is not None:
            return phase, self._timetable
        self.method.train()
        with self._random.of_modules():
            while self._entered < number:
                self._entered += 1
                self.phases[self._entered].enter(self)
                if self.phases[self._entered].optimizers is not None:
                    self._optimizers = self._course.optimizers(self._entered)
            phase.begin_epoch(self)
        if self._group is not None:
            self._group.broadcast(self.method.buffers())  # one image more or less in a turn, and ranks wait in vain
        passes = [method.Pass(torch.arange(len(self.batches)))] if phase.passes is None else phase.passes()
        plan = sampler.EpochSampler.drawn(passes, self.spec.batch_size, self._random.order, self.device)
        if plan.is_empty:
            raise errors.UnusableData(f"epoch {self.epoch} ({phase.name}) has no image to train on", code="empty_pool")
        self._timetable = plan
        self._position, self._seconds = 0, 0.0
        self._loss.zero_()
        return phase, plan

    def _check_room(self, phase: method.Phase, plan: sampler.EpochSampler) -> None:
        """OutOfMemory before the first step of a phase that does not fit; it is tried once in each process."""
        if self._room is not None and self._room[0] == self._entered:
            return
        slot = plan.slot(min(self._position, plan.steps - 1))  # a resumed epoch may have taken all its steps

        def show(size: int) -> method.Batch:
            few, progress = tuple(each[:size] for each in slot.shown), self._progress(slot)
            return self.batches.batch(phase, slot.pass_index, few, epoch=self.epoch, progress=progress)

        scored = len(self.batches) if phase.begin_epoch is not method.no_preparation else 0
        with self._random.untouched(), self._random.of_modules():
            room = memory_check.room(
                self.method,
                show,
                lambda batch, optimizers: self._descended(phase, batch, optimizers),
                lambda size: self._heads(self.batches.unaugmented(size)),
                rows=tuple(map(len, slot.shown)),
                measured_rows=min(self.batches.eval_batch_size(), max(scored, *map(len, self._parts.values()))),
                optimizers=self._optimizers,
                device=self.device,
                group=self._group,
            )
        self._room = (self._entered, room)
        room.check(self.spec.batch_size)

    def _take_step(self, phase: method.Phase, slot: sampler.StepIndices) -> None:
        self._course.set_rates(self._optimizers, self._entered, self.epoch + slot.passed)
        key = (self.epoch, slot.pass_index, *map(len, slot.shown))

        def work(shown: step_graphs.Inputs, progress: float) -> None:
            batch = self.batches.batch(phase, slot.pass_index, shown, epoch=self.epoch, progress=progress)
            self._loss += self._descended(phase, batch, self._optimizers) * len(batch.index)

        with self._random.of_modules():
            self._stepper.take(key, slot.shown, self._progress(slot), self._optimizers, work)
        self._position += 1
        self.step += 1
        if self._position % WATCHED_STEPS == 0:
            self._check_finite(phase)

    def _descended(self, phase: method.Phase, batch: method.Batch, optimizers: method.Optimizers) -> Tensor:
        """The loss of a batch, detached, after the step down it."""
        self.method.train()
        with self._autocast():
            loss = phase.loss(batch)
        taken = method.take_gradient_step(loss, optimizers, phase.clip, lambda: phase.before_step(batch))
        with self._autocast():
            phase.after_step(batch)
        return taken

    def _end_epoch(self, phase: method.Phase, plan: sampler.EpochSampler) -> EpochReport:
        self._check_finite(phase)  # waits for the device, so the clock below is honest
        self._check_weights(phase)  # of the last step no loss has told yet
        if self._group is not None:
            self._group.sync_check(self.method.state_dict().values())
        training_seconds = self._seconds + time.perf_counter() - self._clock_started
        measured = {name: measure.scores(self._answers(name)) for name in EVALUATION_SPLITS}
        self.log.end_epoch()
        report = EpochReport(
            epoch=self.epoch,
            epochs=self.epochs,
            phase=phase.name,
            step=self.step,
            train_loss=float(self._loss) / plan.labelled,
            **measured,
            learning_rate=float(self._optimizers.groups[0]["lr"]),
            seconds=self._seconds + time.perf_counter() - self._clock_started,
            images_per_second=len(self.batches) / training_seconds,
            finite=all(math.isfinite(n) for heads in measured.values() for score in heads.values() for n in score),
        )
        self.history.append(report)
        self.epoch += 1
        self._timetable, self._position = None, 0
        self._stepper.forget()
        return report

    def _answers(self, name: str) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Logits of every head and labels of a part, batch by batch; held-out labels are ranked as the others are."""
        for rows, images, labels in self._parts[name]:
            found = self._heads(images)
            if name == "noisy_validation" and self.log.ranking:
                self.log.record_logits(rows, found[ENSEMBLE])
            yield found, labels

    def _heads(self, images: Tensor) -> dict[str, Tensor]:
        self.method.eval()
        with torch.no_grad(), self._autocast():
            return self.method.heads(images)

    def _progress(self, slot: sampler.StepIndices) -> float:
        """How much of the whole training lies behind, in [0, 1)."""
        return (self.epoch + slot.passed) / self.epochs

    def _check_finite(self, phase: method.Phase) -> None:
        if not bool(torch.isfinite(self._loss)):
            raise errors.TrainingDiverged(self.epoch, phase.name)

    def _check_weights(self, phase: method.Phase) -> None:
        if not bool(torch.stack([torch.isfinite(weight).all() for weight in self.method.parameters()]).all()):
            raise errors.TrainingDiverged(self.epoch, phase.name)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._half)

    def _fitting(self) -> int | None:
        """None before a phase was tried: only what does not depend on the batch size comes earlier."""
        return None if self._room is None else self._room[1].fitting(self.spec.batch_size)

    @contextlib.contextmanager
    def _at_work(self, what: str) -> Iterator[None]:
        """Our own time, without that of whoever consumes the events."""
        self._clock_started = time.perf_counter()
        with devices.bounded_memory(f"{what} with batch_size {self.spec.batch_size}", self._fitting):
            yield
        self._seconds += time.perf_counter() - self._clock_started

    def generator(self, concern: str) -> torch.Generator:
        """See `phase.TrainContext.generator`."""
        return self._random.generator(concern)

    def noisy_accuracies(self) -> list[float]:
        """See `phase.TrainContext.noisy_accuracies`."""
        return [report.noisy_validation[ENSEMBLE].accuracy for report in self.history if report.noisy_validation]

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        """`function` of the M trained images in the method's order, in eval mode; see `phase.TrainContext.score`."""
        was_training = self.method.training
        self.method.eval()
        with torch.no_grad(), self._autocast():
            found = [
                torch.stack([function(images).float() for images in shown]).mean(dim=0)
                for shown in self.batches.scored(views)
            ]
        self.method.train(was_training)
        return torch.cat(found)

    def record_steps(self, recorder: step_graphs.Recorder) -> None:
        """From now on, record steps and repeat them."""
        self._stepper = step_graphs.GraphedStep(recorder, self._random.on_device)

    def label_issues(self) -> ranking.LabelIssues | None:
        """The ranking of all N given labels so far; None before the first epoch has ended."""
        return ranking.label_issues(self.labels, self.log, self.held_out)

    def summary(self) -> dict[str, float | int | None]:
        """Last, best noisy-validation, best test and mean of the last ten test accuracies."""
        validation = [report.noisy_validation.get(ENSEMBLE) for report in self.history]
        test = [report.test.get(ENSEMBLE) for report in self.history]
        return measure.summary([v and v.accuracy for v in validation], [t and t.accuracy for t in test])

    def state(self) -> checkpoint.State:
        """A snapshot of everything that the rest of the training depends on (K1); later steps do not change it."""
        tensors = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        log_tensors, log_facts = self.log.state()
        tensors |= {f"log/{name}": tensor for name, tensor in log_tensors.items()}
        tensors |= {f"random/{name}": tensor for name, tensor in self._random.state().items()}
        tensors["loss"] = self._loss
        if self._timetable is not None:
            tensors |= {f"timetable/{name}": tensor for name, tensor in self._timetable.state().items()}
        tensors = {name: checkpoint.snapshot(tensor) for name, tensor in tensors.items()}
        members = enumerate(self._optimizers.members)
        packed = [checkpoint.pack_optimizer(each, f"optimizer/{number}/") for number, each in members]
        for each in packed:
            tensors |= each.tensors
        between_epochs = self._timetable is None and self.history
        validation = self.history[-1].noisy_validation.get(ENSEMBLE) if between_epochs else None
        facts: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "position": self._position,
            "entered": self._entered,
            "seconds": self._seconds,
            "networks_made": self._networks.made,
            "frozen": [name for name, p in self.method.named_parameters() if not p.requires_grad],
            "optimizers": [each.facts for each in packed],
            "log": log_facts,
            "history": [report.to_json() for report in self.history],
            "score": validation.accuracy if validation else None,
            "config_hash": self.config_hash,
            "data_hash": self.data_hash,
        }
        return checkpoint.State(tensors, facts)

    def restore(self, state: checkpoint.State) -> None:
        """Become what `state` described; CheckpointInvalid if it belongs to another training (K3)."""
        facts = state.facts
        checkpoint.check_owner(facts, config_hash=self.config_hash, data_hash=self.data_hash)
        self.method.load_state_dict(state.under("method/"))
        for name, parameter in self.method.named_parameters():
            parameter.requires_grad_(name not in facts["frozen"])
        self._entered = facts["entered"]
        self._optimizers = self._course.optimizers(self._entered)
        for number, (member, packed) in enumerate(zip(self._optimizers.members, facts["optimizers"], strict=True)):
            checkpoint.unpack_optimizer(member, f"optimizer/{number}/", checkpoint.State(state.tensors, packed))
        self._random.restore(state.under("random/"))
        drawn = state.under("timetable/")
        self._timetable = sampler.EpochSampler.restored(drawn, self.spec.batch_size, self.device) if drawn else None
        self._loss = state.tensors["loss"].to(self.device, copy=True)
        self.log.restore(state.under("log/"), facts["log"])
        self.history = [EpochReport.from_json(report) for report in facts["history"]]
        self.step, self.epoch, self._position = facts["step"], facts["epoch"], facts["position"]
        self._seconds, self._networks.made = facts["seconds"], facts["networks_made"]
        self._stepper.forget()
