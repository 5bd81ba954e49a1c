"""The training loop: an iterable of events that can be stopped, saved and resumed after every step.

`Trainer.__iter__` is the loop. The trainer owns order, precision, learning rates, generators and state; the method that
it trains owns the loss (`ml.method`). It knows no database and no cancellation: the caller stops asking for events.
A resumed training computes the same bits as one that was never stopped, on a CPU and on a deterministic GPU.

Shapes: `N` images of the set, `M` of them trained on (the rest is held out), `B` batch, `C` classes.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from ml import errors
from ml.distributed.process_group import ProcessGroup
from ml.evaluation import measure, ranking
from ml.features.feature_file import Progress
from ml.features.method_input import PictureMethod
from ml.method import ENSEMBLE, Batch, Method, Optimizers, Pass, Phase, no_preparation, take_gradient_step
from ml.training import checkpoint, devices, memory_check, setup, step_graphs, step_state, trainer_state
from ml.training.events import EpochReport, Step
from ml.training.inputs import InputCache
from ml.training.sampler import EpochSampler, StepIndices
from ml.training.spec import TrainingSpec

if TYPE_CHECKING:
    from ml.data.dataset import LabeledImages, Truth

__all__ = ("EpochReport", "Step", "Trainer")

FINITE_CHECK_STEPS = 50  # every so many steps the trainer waits for the device to see whether the loss is finite
# Times what a step needs: recordings have memory of their own, eager steps theirs, and the estimate may be low
RECORDING_ROOM = 3.0


class Trainer:
    """One training. Iterate over it to train; call `state` and `restore` between any two events.

    It is the `ml.method.TrainContext` of its method.

    Attributes:
        labels: The labels to train on and to rank, int64 (N,), with the noise that the spec injects.
        noise_rate: Share of labels that this noise changed; None without noise.
        held_out: The rows that are not trained on, int64 (N - M,).
        confirmed: bool (N,), whether a person has confirmed the label; None where none is, or noise was injected.
        mean, std: Of each channel in [0, 1], float64 (3,).
        batches: Builds batches of the M images that are trained on.
        margins: Collects what ranks the given labels.
        phases, epochs: Of the method, and how many epochs they have together.
        history: The reports of all epochs that have ended.
        epoch, step: The epoch that runs or comes next, and the steps taken so far, from 0.
        phase_number, optimizers: The phase entered last (-1 before the first), and its optimizers.
        step_runner: Runs steps eagerly or from recordings.
        scaler: Scales losses where the network computes in fp16; off elsewhere.
        memory: What the phase needs; None until `check_memory` has estimated it.
        sampler, position: The order of this epoch (None between epochs), and how many of its steps are taken.
        loss_sum, seconds: Of this epoch: the sum of losses over its images, and the time spent.
    """

    # Setup

    def __init__(
        self, spec: TrainingSpec, parts: setup.TrainingParts, device: torch.device, group: ProcessGroup | None
    ) -> None:
        """Use `build`."""
        self.spec, self.device, self.config_hash = spec, device, spec.digest()
        self.data_hash, self.classes = parts.data_hash, parts.classes
        self.labels, self.noise_rate, self.held_out = parts.labels, parts.noise_rate, parts.held_out
        self.confirmed = parts.confirmed
        self.mean, self.std = parts.mean, parts.std
        self.random, self.networks, self.method = parts.random, parts.networks, parts.method
        self.batches, self.margins, self.evaluator = parts.batches, parts.margins, parts.evaluator
        self.inputs, self.scaler = parts.inputs, parts.scaler
        self.schedule = parts.schedule
        self.phases, self.epochs = self.schedule.phases, self.schedule.epochs
        self._autocast, self._group = parts.autocast, group

        # Between epochs
        self.history: list[EpochReport] = []
        self.epoch = self.step = 0
        self.phase_number = -1
        self.optimizers = self.schedule.build_optimizers(self.phase_number)
        self.step_runner: step_graphs.StepRunner = step_graphs.EagerStep()
        self.memory: memory_check.MemoryEstimate | None = None
        self._checked_phase = -1  # the phase that `memory` is of

        # Within an epoch
        self.sampler: EpochSampler | None = None
        self.position = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.seconds = 0.0
        self._clock_started = 0.0  # when `_working` was last entered, by `time.perf_counter`

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
        cuda_graphs: bool = True,
        group: ProcessGroup | None = None,
        cache: Path | None = None,
        progress: Progress = lambda done, total: None,
        resident_bytes: int | None = None,
    ) -> Self:
        """A training that is ready to iterate.

        Args:
            spec: Everything that determines the training.
            images: The images and their given labels.
            truth: Clean labels and the test set, for evaluation only.
            device: Overrides the spec's device.
            threads: CPU threads of torch; None leaves them as they are.
            weights: The folder of pretrained weights.
            cuda_graphs: On a GPU, record steps and replay them where that is the same (`ml.training.step_graphs`), so
                it is no part of the spec. Several processes, and images that are streamed, take eager steps.
            group: The ranks of a training on several devices. All build the same training and iterate over it alike.
            cache: The folder of the data set, where features of a frozen backbone are kept.
            progress: Called while such features are computed, with the numbers of images done and in all; may raise.
            resident_bytes: As of `ml.training.store_choice.choose`; the result is the same.

        Raises:
            UnknownName: No such device, method or network.
            ContradictorySpec: Settings of the spec exclude each other.
            UnusableData: Images, labels, classes and spec do not fit together.
            MissingWeights: The pretrained weights are not installed.
            OutOfMemory: The networks do not fit.
        """
        resolved = devices.resolve(device or spec.device)
        if threads is not None:
            torch.set_num_threads(threads)
        devices.configure(resolved, exact=spec.precision == "f32", deterministic=spec.deterministic)
        setup.check_data(spec, images)
        with devices.catch_failures("preparing the training"):
            input_cache = InputCache(cache, progress, resident_bytes)
            parts = setup.prepare(spec, images, truth, resolved, weights, group, input_cache)
            trainer = cls(spec, parts, resolved, group)
            if cuda_graphs and resolved.type == "cuda":
                trainer.record_on_gpu()
            return trainer

    def record_on_gpu(self) -> None:
        """Record steps as CUDA graphs from now on, unless what happens between them cannot be recorded."""
        if self._group is not None:
            reason = "the processes of a training exchange data within a step"
        elif self.inputs.streamed:
            reason = "each waits for its images"
        else:
            self.record_steps(step_graphs.CudaGraphs(self.device))
            return
        self.step_runner.notices.append(f"Steps are taken one by one, since {reason}.")

    def record_steps(self, recorder: step_graphs.GraphRecorder) -> None:
        """From now on, record steps with `recorder` and replay them, where both ways come to the same."""
        defaults = [torch.default_generator]
        if self.device.type == "cuda":
            defaults.append(torch.cuda.default_generators[self.device.index])
        self.step_runner = step_graphs.GraphedStep(
            recorder,
            step_state.StepState(self._step_tensors, lambda: (*self.random.generators(), *defaults)),
            self.random.generators,
            exact=self.spec.deterministic or self.device.type == "cpu",
            obstacle=self._recording_obstacle,
        )

    # The loop

    def __iter__(self) -> Iterator[Step | EpochReport]:
        """Train to the end: a `Step` after every step, an `EpochReport` after every epoch.

        Iterating again after a break goes on where the training was left.

        Raises:
            TrainingDiverged: The loss or a weight is not finite any more; in fp16, gradients overflow at any scale.
            OutOfMemory: A phase does not fit; usually raised before its first step.
            UnusableData: A phase selects no image to train on.
            RankDivergence: The ranks of a group hold different weights.
        """
        while self.epoch < self.epochs:
            # Enter the phase of this epoch and draw the order of the images (a restored epoch has both).
            with self._working("preparing an epoch"):
                phase, sampler = self.begin_epoch()
                if self._checked_phase != self.phase_number and sampler.steps:
                    self.check_memory()
                self.batches.read_ahead(sampler.positions_from(self.position))

            # Take its steps. A step reports no loss, since reading it would wait for the device.
            while self.position < sampler.steps:
                with self._working("a training step"):
                    indices = sampler.at(self.position)
                    moved = indices.progress if self.spec.schedule_unit == "step" else 0.0
                    self.schedule.set_learning_rates(self.optimizers, self.phase_number, self.epoch + moved)
                    self._run_step(phase, indices)
                    self.position += 1
                    self.step += 1
                    if self.position % FINITE_CHECK_STEPS == 0:
                        self._check_loss(phase)
                yield Step(self.epoch + 1, phase.name, self.position - 1, sampler.steps, self.step)

            # Check the weights, evaluate, report.
            with self._working("evaluating"):
                report = self._end_epoch(phase, sampler)
            yield report

    def loss_so_far(self) -> tuple[float, float]:
        """The sum of the losses of this epoch's steps, and of how many images. Reading it waits for the device.

        Where the last step has fewer images than the others, the number is off by less than a step's.
        """
        if self.sampler is None or not self.position:
            return 0.0, 0.0
        return float(self.loss_sum), self.sampler.labelled * self.position / self.sampler.steps

    def _run_step(self, phase: Phase, indices: StepIndices) -> None:
        """One step, eager or recorded."""
        rows = tuple(map(len, indices.positions))
        key = step_graphs.StepKey(self.phase_number, phase.name, indices.pass_index, rows)
        train = functools.partial(self._train_step, phase, indices.pass_index)
        with self.random.module_rng():
            progress, ranked_before = self._progress(indices), self.margins.has_recorded
            ranks = self.step_runner.run(key, indices.positions, self.epoch, progress, self.optimizers, train)
        self.margins.has_recorded = ranked_before or ranks

    def _train_step(
        self, phase: Phase, pass_index: int, positions: step_graphs.Positions, epoch: int, progress: float
    ) -> bool:
        """Take a step. Returns whether it recorded logits by which labels are ranked."""
        self.margins.has_recorded = False
        batch = self.batches.build(phase, pass_index, positions, epoch=epoch, progress=progress)
        loss = self._optimize(phase, batch, self.optimizers)
        self.loss_sum += loss * len(batch.index)
        return self.margins.has_recorded

    def _optimize(self, phase: Phase, batch: Batch, optimizers: Optimizers) -> Tensor:
        """Loss, backward, optimizer step. Returns the loss of the batch, detached."""
        self.method.train()
        with self._autocast():
            loss = phase.loss(batch)
        loss = take_gradient_step(loss, optimizers, phase.clip, lambda: phase.before_step(batch), self.scaler)
        with self._autocast():
            phase.after_step(batch)
        return loss

    def _step_tensors(self) -> dict[str, Tensor]:
        """All that a step changes, or depends on beside its images; see `step_state.StepState`."""
        optimizer_tensors = {
            f"optimizers/{number}/{place}/{name}": value
            for number, member in enumerate(self.optimizers.members)
            for place, entries in enumerate(member.state.values())
            for name, value in entries.items()
            if isinstance(value, Tensor) and value.device.type == self.device.type
        }
        return {
            **{f"weights/{name}": parameter for name, parameter in self.method.named_parameters()},
            **{f"buffers/{name}": buffer for name, buffer in self.method.named_buffers()},
            **optimizer_tensors,
            **{f"margins/{name}": tensor for name, tensor in self.margins.state()[0].items()},
            **{f"scaler/{name}": tensor for name, tensor in self.scaler.tensors().items()},
            "loss/sum": self.loss_sum,
        }

    def _recording_obstacle(self) -> str | None:
        """Why the steps of this phase should not be recorded, though they may be; None: they should."""
        if self.memory is None:
            return None
        need = self.memory.need.at(self.spec.batch_size)
        if RECORDING_ROOM * need <= self.memory.free:
            return None
        return (
            f"recordings need memory of their own beside the {need / memory_check.GIGABYTE:.1f} GB of a step, and "
            f"{self.memory.free / memory_check.GIGABYTE:.1f} GB are free"
        )

    def begin_epoch(self) -> tuple[Phase, EpochSampler]:
        """The phase and the sampler of this epoch. If it has begun already, nothing changes."""
        number = self.schedule.phase_of(self.epoch)
        phase = self.phases[number]
        if self.sampler is not None:
            return phase, self.sampler

        # Enter the phase, and those without epochs before it
        self.method.train()
        with self.random.module_rng():
            while self.phase_number < number:
                self.phase_number += 1
                self.phases[self.phase_number].enter(self)
                if self.phases[self.phase_number].optimizers is not None:
                    self.optimizers = self.schedule.build_optimizers(self.phase_number)
            phase.begin_epoch(self)
        if self._group is not None:
            self._group.broadcast(self.method.buffers())  # pools of different lengths would block the ranks

        # Draw the images of every step
        passes = [Pass(torch.arange(len(self.batches)))] if phase.passes is None else phase.passes()
        batch_size = phase.images_per_step(self.spec.batch_size)
        sampler = EpochSampler.draw(passes, batch_size, self.random.order, self.device)
        if sampler.is_empty:
            detail = f"epoch {self.epoch + 1} ({phase.name}) has no image to train on"
            raise errors.UnusableData(detail, code="empty_pool")
        self.sampler, self.position, self.seconds = sampler, 0, 0.0
        self.loss_sum.zero_()
        self.scaler.skipped.zero_()
        return phase, sampler

    def check_memory(self) -> None:
        """Estimate what the phase of this epoch needs (`memory`) from a step on a few images, whose effects are undone.

        Raises:
            OutOfMemory: The phase does not fit.
        """
        phase, sampler = self.begin_epoch()
        indices = sampler.at(min(self.position, sampler.steps - 1))  # a restored epoch may have taken all its steps

        def build_batch(size: int) -> Batch:
            few, progress = tuple(rows[:size] for rows in indices.positions), self._progress(indices)
            return self.batches.build(phase, indices.pass_index, few, epoch=self.epoch, progress=progress)

        applied = len(self.batches) if phase.begin_epoch is not no_preparation else 0  # it may call `score`
        eval_rows = min(self.batches.eval_batch_size(), max(applied, self.evaluator.largest_split))
        with self.random.preserved(), self.random.module_rng(), self.scaler.preserved():
            self.memory = memory_check.estimate(
                self.method,
                build_batch,
                lambda batch, optimizers: self._optimize(phase, batch, optimizers),
                lambda size: self.evaluator.heads(self.batches.unaugmented(size)),
                rows=tuple(map(len, indices.positions)),
                eval_rows=eval_rows,
                optimizers=self.optimizers,
                device=self.device,
                group=self._group,
            )
        self._checked_phase = self.phase_number
        self.memory.check(self.spec.batch_size)

    def _end_epoch(self, phase: Phase, sampler: EpochSampler) -> EpochReport:
        """The report of this epoch; the next one comes."""
        # Reading the loss waits for the device, so that the time below is that of the steps
        self._check_loss(phase)
        self._check_weights(phase)  # no loss has shown the effect of the last step
        if self._group is not None:
            self._group.sync_check(self.method.state_dict().values())
        training_seconds = self.seconds + time.perf_counter() - self._clock_started

        scores = self.evaluator.scores()
        self.margins.end_epoch()
        report = EpochReport(
            epoch=self.epoch + 1,
            epochs=self.epochs,
            phase=phase.name,
            step=self.step,
            train_loss=float(self.loss_sum) / sampler.labelled if sampler.steps else math.nan,
            **scores,
            learning_rate=float(self.optimizers.groups[0]["lr"]) if sampler.steps else 0.0,
            seconds=self.seconds + time.perf_counter() - self._clock_started,
            images_per_second=len(self.batches) / training_seconds,
            finite=all(math.isfinite(n) for heads in scores.values() for score in heads.values() for n in score),
            skipped_steps=int(self.scaler.skipped),
        )

        self.history.append(report)
        self.epoch += 1
        self.sampler, self.position = None, 0
        return report

    def run_follower(self) -> None:
        """Train as a rank other than the first: restore the checkpoint that rank 0 names, train to the end, leave."""
        assert self._group is not None
        if (path := self._group.broadcast_object()) is not None:
            self.restore(checkpoint.read(Path(path)))
        for _ in self:
            pass
        self._group.leave()

    # What a method may ask for (`ml.method.TrainContext`)

    def generator(self, concern: str) -> torch.Generator:
        """The generator of a concern, on the training's device; its state is part of `state`."""
        return self.random.generator(concern)

    def noisy_accuracies(self) -> list[float]:
        """Accuracies of the ensemble on held-out images by given labels, one an epoch; empty if none are held out."""
        return [report.noisy_validation[ENSEMBLE].accuracy for report in self.history if report.noisy_validation]

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        """`function` of all M images that are trained on, by position; see `ml.method.TrainContext.score`."""
        return self.evaluator.apply(function, self.batches.all_images(views))

    def rendered(self, kind: str) -> Iterator[Tensor]:
        """Another rendering of the images, batch by batch; see `ml.method.TrainContext.rendered`."""
        return self.inputs.rendered(kind)

    def record_logits(self, logits: Tensor) -> None:
        """Rank by logits (M, C) of all images that are trained on; see `ml.method.TrainContext.record_logits`."""
        self.batches.record_logits(logits)

    # Results

    def picture_method(self) -> Method:
        """The method as it predicts from pictures: with the frozen backbone before it, if there is one."""
        method_input = self.inputs.method_input
        return self.method if method_input is None else PictureMethod(method_input, self.method)

    def label_issues(self) -> ranking.LabelIssues | None:
        """The ranking of all N given labels so far; None before the first epoch has ended."""
        estimate = self.method.noise_estimate()
        return ranking.label_issues(self.labels, self.margins, self.held_out, estimate, self.confirmed)

    def summary(self) -> dict[str, float | int | None]:
        """Last, best noisy-validation, best test and mean of the last ten test accuracies (`measure.summary`)."""
        validation = [report.noisy_validation.get(ENSEMBLE) for report in self.history]
        test = [report.test.get(ENSEMBLE) for report in self.history]
        return measure.summary([v and v.accuracy for v in validation], [t and t.accuracy for t in test])

    # State

    def state(self, *, on_device: bool = False) -> checkpoint.State:
        """A copy of everything that the rest of the training depends on (K1); see `trainer_state.pack`."""
        return trainer_state.pack(self, on_device=on_device)

    def restore(self, state: checkpoint.State) -> bool:
        """Go on from a `state` of the same training; False if not exactly (F29).

        Raises CheckpointInvalid if it belongs to another training: its spec or its data differ (K3).
        """
        return trainer_state.unpack(self, state)

    # Helpers of the loop

    def _progress(self, indices: StepIndices) -> float:
        """How much of the whole training is done, in [0, 1)."""
        return (self.epoch + indices.progress) / self.epochs

    def _check_loss(self, phase: Phase) -> None:
        if not bool(torch.isfinite(self.loss_sum) & ~self.scaler.has_collapsed()):
            raise errors.TrainingDiverged(self.epoch + 1, phase.name)

    def _check_weights(self, phase: Phase) -> None:
        if not bool(torch.stack([torch.isfinite(weight).all() for weight in self.method.parameters()]).all()):
            raise errors.TrainingDiverged(self.epoch + 1, phase.name)

    @contextlib.contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Count the trainer's own time, not that of the consumer of events; turn memory errors into OutOfMemory."""

        def fitting() -> int | None:
            return None if self.memory is None else self.memory.fitting(self.spec.batch_size)

        self._clock_started = time.perf_counter()
        with devices.catch_failures(f"{what} with batch_size {self.spec.batch_size}", fitting):
            yield
        self.seconds += time.perf_counter() - self._clock_started
