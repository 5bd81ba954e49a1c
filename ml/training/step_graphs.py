"""Two ways to run a training step: eagerly, or by replaying a recording of its operations (a CUDA graph).

A GPU finishes the operations of a small network faster than Python can launch them. A CUDA graph launches all of them
at once, but always on the same tensors with the same numbers. So a recording is valid only while nothing that Python
decides can change: one phase, one pass, one batch shape, and epochs of which the loss makes the same numbers
(`Batch.of_epoch`). It serves all such epochs, as long as the tensors stay where they are. What changes at every step is
copied into tensors that the recording reads (positions, learning rates); generators are registered with it; and
`progress` is replaced by a `DynamicValue`, so that a step which needs the number cannot be recorded.

Before a recording is used it is checked: from one state, on the same images, the eager step and the recorded one have
to come to the same state, once where it was recorded and once more on the next images, which shows numbers that were
wrongly repeated. Where they do not, or where a step cannot be recorded, the steps of that phase are eager, and
`StepRunner.notices` says so.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ml.blocks import side_by_side
from ml.method import Optimizers
from ml.step_values import DynamicValue, RecordedEpoch
from ml.training import step_state

log = logging.getLogger(__name__)

MOST_RECORDINGS = 32  # of a phase; the one that was not used for longest makes room

# int64 (B,) of the labelled images of a step, and (B',) of the unlabelled ones if there are any
Positions = tuple[Tensor, ...]
# a step: takes positions, the epoch and `progress`: an int and a float, or what stands for them in a recording. Beside
# what it does on the device it may only return a value, which is the same in all steps that launch the same operations.
Work = Callable[[Positions, Any, Any], Any]


class StepKey(NamedTuple):
    """All that Python may decide a step by, except the epoch and the progress."""

    phase: int  # its number
    name: str  # of the phase, for messages
    pass_index: int  # of the phase's passes
    rows: tuple[int, ...]  # images of each kind


class Unrecordable(Exception):
    """A step cannot be recorded."""


class GraphRecorder(Protocol):
    """Records operations: `CudaGraphs`, and a recorder for CPUs in the tests."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do the work without recording it, in the place (stream, allocator) where recordings are made."""
        ...

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        """Do the work once, and return a function that repeats it.

        Args:
            work: Launches the operations; it was done before.
            generators: All that it may draw from, besides the device's default one.

        Raises:
            Unrecordable: The work cannot be recorded.
        """
        ...

    def release(self) -> None:
        """Give back the memory of recordings; none that was made so far is repeated any more."""
        ...


class StepRunner(Protocol):
    """Runs the steps of a training.

    Attributes:
        notices: What the user should know of it, sentences; whoever reports them empties the list.
        steps, replayed: How many it has run, and how many of them from recordings.
    """

    notices: list[str]
    steps: int
    replayed: int

    def recorded_share(self) -> float:
        """The share of the steps that were replayed, in [0, 1]."""
        ...

    def run(
        self, key: StepKey, positions: Positions, epoch: int, progress: float, optimizers: Optimizers, work: Work
    ) -> Any:
        """Run one step.

        Args:
            key: Steps of one key launch the same operations, in epochs of which their loss makes the same numbers.
            positions: The images of the step.
            epoch: From 0.
            progress: Of the whole training, in [0, 1).
            optimizers: Those that the work uses, with the learning rates of this step.
            work: The step.

        Returns:
            What the work returns; of a replayed step, what it returned when it was recorded.
        """
        ...

    def reset(self) -> None:
        """Drop recordings, since what they depend on changes. They also hold memory."""
        ...


class EagerStep:
    """Runs every step eagerly. See `StepRunner`."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps = self.replayed = 0

    def recorded_share(self) -> float:
        return self.replayed / max(1, self.steps)

    def run(
        self, key: StepKey, positions: Positions, epoch: int, progress: float, optimizers: Optimizers, work: Work
    ) -> Any:
        self.steps += 1
        return work(positions, epoch, progress)

    def reset(self) -> None:
        pass


@dataclass(eq=False)
class Recording:
    """One recorded step."""

    key: StepKey
    replay: Callable[[], object]
    positions: Positions  # the tensors that it reads
    rates: list[Tensor]  # f32 scalars that it reads, one for each group of parameters
    epoch_value: RecordedEpoch
    layout: Hashable  # of the state when it was made
    epoch: int  # for which it is known to be valid
    returned: Any  # by the work
    is_checked: bool = False  # on images other than those it was recorded with

    def set_inputs(self, positions: Positions, optimizers: Optimizers) -> None:
        """Copy the inputs of the next step to where the recording reads them."""
        for target, source in zip(self.positions, positions, strict=True):
            target.copy_(source)
        for rate, group in zip(self.rates, optimizers.groups, strict=True):
            rate.fill_(group["lr"])


class GraphedStep(EagerStep):
    """Runs the first step of a key eagerly, records and checks the second, checks the third, replays the others.

    See `StepRunner`.

    Attributes:
        refused: Why steps of a phase are not recorded, by its number.
    """

    def __init__(
        self,
        recorder: GraphRecorder,
        state: step_state.StepState,
        generators: Callable[[], Sequence[torch.Generator]],
        *,
        exact: bool,
        obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Bind to a training.

        Args:
            recorder: Makes the recordings.
            state: What a step may change.
            generators: All that a step may draw from, besides torch's default ones.
            exact: Recorded and eager steps must have the same bits; otherwise they may differ by rounding.
            obstacle: Says at the first step of a phase why it should not be recorded; None: record it.
        """
        super().__init__()
        self.refused: dict[int, str] = {}
        self._recorder, self._state, self._generators = recorder, state, generators
        self._exact, self._obstacle = exact, obstacle
        self._phase: int | None = None
        self._seen: OrderedDict[StepKey, None] = OrderedDict()  # keys of steps, of which the last ones are known
        self._unsettled: set[StepKey] = set()  # keys of steps that have replaced tensors
        self._recordings: list[Recording] = []  # the one used last at the end

    def run(
        self, key: StepKey, positions: Positions, epoch: int, progress: float, optimizers: Optimizers, work: Work
    ) -> Any:
        self.steps += 1
        if key.phase != self._phase:  # phases do not come back
            self.reset()
            self._phase = key.phase
            if key.phase not in self.refused and (reason := self._obstacle()) is not None:
                self._refuse(key, reason)

        returned: list[Any] = []

        def eager() -> None:
            returned.append(work(positions, epoch, progress))

        if key.phase in self.refused:
            eager()
        elif (recording := self._find(key, epoch)) is not None:
            recording.set_inputs(positions, optimizers)
            if not recording.is_checked:
                self._check(recording, eager)
            else:
                recording.replay()
                self.replayed += 1
            return recording.returned
        elif key in self._seen:
            self._record(key, positions, epoch, optimizers, work, eager)
        else:
            self._recorder.warm_up(eager)
            self._seen[key] = None
            if len(self._seen) > MOST_RECORDINGS:
                self._seen.popitem(last=False)
        return returned[0]

    def reset(self) -> None:
        self._phase = None
        self._seen.clear()
        self._unsettled.clear()
        self._recordings.clear()

    def _find(self, key: StepKey, epoch: int) -> Recording | None:
        """The recording that serves this step, if there is one."""
        layout: Hashable = None
        for recording in [one for one in self._recordings if one.key == key]:
            if recording.epoch != epoch:
                if not recording.epoch_value.serves(epoch):
                    continue
                layout = layout or self._state.layout()
                if recording.layout != layout:  # what it reads or writes has been replaced
                    self._recordings.remove(recording)
                    continue
                recording.epoch = epoch
            self._recordings.remove(recording)
            self._recordings.append(recording)
            return recording
        return None

    def _record(
        self,
        key: StepKey,
        positions: Positions,
        epoch: int,
        optimizers: Optimizers,
        work: Work,
        eager: Callable[[], None],
    ) -> None:
        """Run a step eagerly, undo it, and record it: both must come to the same state."""

        def record() -> Recording:
            copies = tuple(tensor.clone() for tensor in positions)
            device = copies[0].device
            rates = [torch.tensor(group["lr"], dtype=torch.float32, device=device) for group in optimizers.groups]
            epoch_value, layout, returned = RecordedEpoch(epoch), self._state.layout(), []
            with _tensor_rates(optimizers, rates):
                replay = self._recorder.record(
                    lambda: returned.append(work(copies, epoch_value, DynamicValue())), self._generators()
                )
            return Recording(key, replay, copies, rates, epoch_value, layout, epoch, returned[0])

        if (recording := self._run_both(key, eager, record)) is None:
            return
        self._recordings.append(recording)
        if len(self._recordings) > MOST_RECORDINGS:
            self._recordings.pop(0)

    def _check(self, recording: Recording, eager: Callable[[], None]) -> None:
        """Run a step eagerly, undo it, and replay the recording: both must come to the same state."""

        def replay() -> Recording:
            recording.replay()
            return recording

        if self._run_both(recording.key, eager, replay) is not None:
            recording.is_checked = True
        elif recording in self._recordings:
            self._recordings.remove(recording)

    def _run_both(self, key: StepKey, eager: Callable[[], None], recorded: Callable[[], Recording]) -> Recording | None:
        """Run a step in both ways from the same state. What remains is the recorded one's effect, if they agree.

        Returns:
            What `recorded` returns; None where the phase is refused, or where this step was only run eagerly.
        """
        try:
            before = self._state.copy()
        except torch.OutOfMemoryError:
            self._refuse(key, "there is no memory to check it")
            eager()
            return None
        layout = self._state.layout()
        self._recorder.warm_up(eager)
        if self._state.layout() != layout:  # it has made something that stays, as the first step of an optimiser does
            if key in self._unsettled:
                self._refuse(key, "it replaces the tensors that it works on")
            self._unsettled.add(key)
            return None
        try:
            expected = self._state.copy()
        except torch.OutOfMemoryError:
            self._refuse(key, "there is no memory to check it")
            return None
        self._state.restore(before)
        try:
            result = recorded()
            difference = self._state.difference(before, expected, exact=self._exact)
        except (Unrecordable, torch.OutOfMemoryError) as error:
            self._state.restore(expected)
            self._refuse(key, str(error).partition("\n")[0])
            return None
        if difference is not None:
            self._state.restore(expected)
            self._refuse(key, f"it is not the eager step: {difference}")
            return None
        return result

    def _refuse(self, key: StepKey, reason: str) -> None:
        self.refused[key.phase] = reason
        self._recordings.clear()
        self._recorder.release()
        notice = f"The steps of phase {key.name} are taken one by one, since none can be recorded: {reason}."
        self.notices.append(notice)
        log.warning("%s", notice)


@contextlib.contextmanager
def _tensor_rates(optimizers: Optimizers, rates: Sequence[Tensor]) -> Iterator[None]:
    """Learning rates as tensors while a step is recorded, and as floats again afterwards, for checkpoints."""
    groups = optimizers.groups
    floats = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate in zip(groups, floats, strict=True):
            group["lr"] = rate


class CudaGraphs:
    """Records CUDA graphs. See `GraphRecorder`.

    All of them take their memory from one pool. They may, as they are replayed one after the other, and none reads what
    another has left there: whatever outlives a step lies outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._latest: torch.cuda.CUDAGraph | None = None  # a pool that no graph uses cannot be captured into again
        # a graph cannot be captured on the default stream; the second is for the second of two networks
        self._stream, self._second = (torch.cuda.Stream(device) for _ in range(2))  # type: ignore[no-untyped-call]

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do the work on the stream of the recordings, so that its first allocations and choices serve them."""
        with self._recording_stream():
            work()

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        """Capture the work, and replay it once, since capturing does not execute it."""
        graph = torch.cuda.CUDAGraph()
        used = [*generators, torch.cuda.default_generators[self._stream.device.index]]
        states = [generator.clone_state() for generator in used]
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # the pool gets what eager steps have left
        try:
            for generator in generators:
                graph.register_generator_state(generator)
            with self._recording_stream(), side_by_side.second_stream(self._second):
                # a checkpoint may be copied by another thread meanwhile
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        except (RuntimeError, TypeError) as error:  # a wait for the device, a copy to it, a DynamicValue
            for generator, state in zip(used, states, strict=True):  # a broken capture leaves them unable to draw
                generator.graphsafe_set_state(state)
            raise Unrecordable(str(error).partition("\n")[0]) from error
        self._latest = graph
        graph.replay()
        return graph.replay

    def release(self) -> None:
        """Leave the pool, and return what nothing uses to the device."""
        self._latest, self._pool = None, torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _recording_stream(self) -> Iterator[None]:
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)
