"""Two ways to run a training step: eagerly, or by replaying a recording of its operations (a CUDA graph).

A GPU finishes the operations of a small network faster than Python can launch them. A CUDA graph launches all of them
at once, but always on the same tensors with the same numbers. So a recording is valid only while nothing that Python
decides can change: one epoch, one pass, one batch shape. What changes at every step is copied into tensors that the
recording reads (positions, learning rates); generators are registered with it; and `progress` is replaced by a
`DynamicValue`, so that a step which needs the number cannot be recorded.

Both ways give the same bits. `EagerStep` is the default.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ml.method import Optimizers

log = logging.getLogger(__name__)

# int64 (B,) of the labelled images of a step, and (B',) of the unlabelled ones if there are any
Positions = tuple[Tensor, ...]
# a step: takes positions and `progress`, a float or a DynamicValue
Work = Callable[[Positions, Any], object]


class DynamicValue:
    """Stands for a number that changes from step to step. Using it raises TypeError, so recording fails."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # a plain object would compare
        raise TypeError("a recorded step needs a value that changes from step to step")

    def __bool__(self) -> bool:
        raise TypeError("a recorded step needs a value that changes from step to step")


class Unrecordable(Exception):
    """A step cannot be recorded. None of its operations has had an effect."""


class GraphRecorder(Protocol):
    """Records operations: `CudaGraphs`, and a recorder for CPUs in the tests."""

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do the work without recording it, in the place (stream, allocator) where recordings are made."""
        ...

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        """Do the work once, and return a function that repeats it.

        Args:
            work: Launches the operations.
            generators: All that it may draw from, besides the device's default one.

        Raises:
            Unrecordable: The work cannot be recorded.
        """
        ...


class StepRunner(Protocol):
    """Runs the steps of a training."""

    def run(self, key: Hashable, positions: Positions, progress: float, optimizers: Optimizers, work: Work) -> None:
        """Run one step.

        Args:
            key: Everything that Python may decide by, except `progress`: steps of one key launch the same operations.
            positions: The images of the step.
            progress: Of the whole training, in [0, 1).
            optimizers: Those that the work uses, with the learning rates of this step.
            work: The step.
        """
        ...

    def reset(self) -> None:
        """Drop recordings, since what they depend on changes. They also hold memory."""
        ...


class EagerStep:
    """Runs every step eagerly. See `StepRunner`."""

    def run(self, key: Hashable, positions: Positions, progress: float, optimizers: Optimizers, work: Work) -> None:
        work(positions, progress)

    def reset(self) -> None:
        pass


class GraphedStep:
    """Runs the first step of a key eagerly, records the second and replays the others. See `StepRunner`.

    Attributes:
        gave_up: Whether a step could not be recorded; all steps are eager from then on.
    """

    def __init__(self, recorder: GraphRecorder, generators: Callable[[], Sequence[torch.Generator]]) -> None:
        """`generators` returns all that a step may draw from."""
        self.gave_up = False
        self._recorder = recorder
        self._generators = generators
        self._key: Hashable = None
        self._replay: Callable[[], object] | None = None
        self._positions: Positions = ()  # the tensors that the recording reads
        self._rates: list[Tensor] = []  # f32 scalars that it reads, one for each group of parameters

    def run(self, key: Hashable, positions: Positions, progress: float, optimizers: Optimizers, work: Work) -> None:
        if self.gave_up:
            work(positions, progress)
        elif key != self._key:
            self.reset()
            self._key = key
            self._recorder.warm_up(lambda: work(positions, progress))
        elif self._replay is None:
            self._record(positions, progress, optimizers, work)
        else:
            for target, source in zip(self._positions, positions, strict=True):
                target.copy_(source)
            for rate, group in zip(self._rates, optimizers.groups, strict=True):
                rate.fill_(group["lr"])
            self._replay()

    def reset(self) -> None:
        self._key, self._replay, self._positions, self._rates = None, None, (), []

    def _record(self, positions: Positions, progress: float, optimizers: Optimizers, work: Work) -> None:
        positions_copy = tuple(tensor.clone() for tensor in positions)
        device = positions_copy[0].device
        rates = [torch.tensor(group["lr"], dtype=torch.float32, device=device) for group in optimizers.groups]
        try:
            with _tensor_rates(optimizers, rates):
                replay = self._recorder.record(lambda: work(positions_copy, DynamicValue()), self._generators())
        except Unrecordable as error:
            log.warning("steps are taken one by one: recording one failed: %s", error)
            self.reset()
            self.gave_up = True
            work(positions, progress)
            return
        self._replay, self._positions, self._rates = replay, positions_copy, rates


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

    Only the latest recording may be replayed: all of them take their memory from one pool, since with a pool of its own
    each would leave that behind.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._latest: torch.cuda.CUDAGraph | None = None  # a pool that no graph uses cannot be captured into again
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # a graph cannot be captured on the default stream

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
        try:
            for generator in generators:
                graph.register_generator_state(generator)
            with self._recording_stream():
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

    @contextlib.contextmanager
    def _recording_stream(self) -> Iterator[None]:
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)
