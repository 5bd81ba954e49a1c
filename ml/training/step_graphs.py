"""Two ways of taking one and the same step: as it is written, or by repeating a recording of what it did.

A GPU finishes a small network's operations faster than Python asks for them. A recording (a CUDA graph) asks for all of
a step's operations at once, but repeats them as they were: on the same tensors, with the same numbers. So it lives only
as long as nothing that Python decides can change - one epoch, one turn, one batch shape. What changes at every step is
copied into tensors it reads (positions, learning rates), generators belong to it, and `progress` is withheld from it.

It knows no method. `EagerStep` is the default.
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


class DynamicValue:
    """Stands where a number changes from step to step: a recording that asks for it fails."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:  # a plain object has an answer
        raise TypeError("a recorded step asks for what changes from step to step")

    def __bool__(self) -> bool:
        raise TypeError("a recorded step asks for what changes from step to step")


Inputs = tuple[Tensor, ...]
Work = Callable[[Inputs, Any], object]  # the step: int64 positions, and `progress`, a float or Withheld


class Unrecordable(Exception):
    """What was to be recorded cannot be; nothing of it was done."""


class Recorder(Protocol):
    """How operations are recorded."""

    def warm(self, work: Callable[[], object]) -> None:
        """Do the work as it is, where recordings will do it."""
        ...

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        """Do the work, and return what does it again; Unrecordable if that cannot be."""
        ...


class EagerStep:
    """Every step as it is written."""

    def take(self, key: Hashable, inputs: Inputs, progress: float, optimizers: Optimizers, work: Work) -> None:
        """One step. `key` names all that Python may decide by, `progress` apart."""
        work(inputs, progress)

    def forget(self) -> None:
        """What a recording has seen is no longer true."""


class GraphedStep:
    """The first step of a key as it is written, the second recorded, all others repeated."""

    def __init__(self, recorder: Recorder, generators: Callable[[], Sequence[torch.Generator]]) -> None:
        """`generators` are all that a step may draw from."""
        self._recorder = recorder
        self._generators = generators
        self._gave_up = False
        self._key: Hashable = None
        self._again: Callable[[], object] | None = None
        self._inputs: Inputs = ()
        self._rates: list[Tensor] = []  # f32 scalars, one for each group of parameters

    def take(self, key: Hashable, inputs: Inputs, progress: float, optimizers: Optimizers, work: Work) -> None:
        """As `EagerStep.take`."""
        if self._gave_up:
            work(inputs, progress)
        elif key != self._key:
            self.forget()
            self._key = key
            self._recorder.warm(lambda: work(inputs, progress))
        elif self._again is None:
            self._record(inputs, progress, optimizers, work)
        else:
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
            for own, group in zip(self._rates, optimizers.groups, strict=True):
                own.fill_(group["lr"])
            self._again()

    def forget(self) -> None:
        """Drop the recording, and the memory that it holds."""
        self._key, self._again, self._inputs, self._rates = None, None, (), []

    def _record(self, inputs: Inputs, progress: float, optimizers: Optimizers, work: Work) -> None:
        own = tuple(given.clone() for given in inputs)
        rates = [torch.tensor(group["lr"], dtype=torch.float32, device=own[0].device) for group in optimizers.groups]
        try:
            with _rates_in(optimizers, rates):
                again = self._recorder.record(lambda: work(own, DynamicValue()), self._generators())
        except Unrecordable as error:
            log.warning("steps are taken one by one: recording one failed: %s", error)
            self.forget()
            self._gave_up = True
            work(inputs, progress)
            return
        self._again, self._inputs, self._rates = again, own, rates


@contextlib.contextmanager
def _rates_in(optimizers: Optimizers, rates: Sequence[Tensor]) -> Iterator[None]:
    """Learning rates as tensors while a step is recorded; floats before and after, as checkpoints want them."""
    groups = optimizers.groups
    before = [group["lr"] for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate in zip(groups, before, strict=True):
            group["lr"] = rate


class CudaGraphs:
    """Recordings of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # a graph cannot be captured on the default stream

    def warm(self, work: Callable[[], object]) -> None:
        """On the stream of the recordings, so that what a first step allocates and chooses is theirs."""
        with self._beside():
            work()

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        """Capture the work, and replay it once, since capturing does not do it."""
        graph = torch.cuda.CUDAGraph()
        drawn = [*generators, torch.cuda.default_generators[self._stream.device.index]]
        before = [generator.clone_state() for generator in drawn]
        torch.cuda.synchronize()
        try:
            for generator in generators:
                graph.register_generator_state(generator)
            with self._beside():
                graph.capture_begin()
                try:
                    work()
                finally:
                    graph.capture_end()
        except (RuntimeError, TypeError) as error:  # a wait for the device, a copy to it, a number that is withheld
            for generator, state in zip(drawn, before, strict=True):  # a broken capture leaves them unable to draw
                generator.graphsafe_set_state(state)
            raise Unrecordable(str(error).partition("\n")[0]) from error
        graph.replay()
        return graph.replay

    @contextlib.contextmanager
    def _beside(self) -> Iterator[None]:
        outside = torch.cuda.current_stream()
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)
