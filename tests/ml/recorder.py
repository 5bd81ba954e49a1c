"""A recorder for tensors on a CPU that has a CUDA graph's rules: it repeats operations, not Python.

What a recording repeats are the operations that reached the dispatcher, on the very tensors that they were given, with
the very numbers; results go where they went. So whatever a branch, a counter or a float of Python would have changed
shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ml.training import step_graphs


class Repeated(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
        made = func(*args, **kwargs)
        fresh = [tensor for tensor in tensors_in(made) if tensor.untyped_storage()._cdata not in inputs]
        writes = func._schema.is_mutable
        if fresh or writes:  # a view needs no repeating
            self.done.append((func, args, kwargs, [tensor.detach() for tensor in fresh]))
        return made

    def again(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, before in self.done:
                made = func(*args, **kwargs)
                inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs))}
                fresh = [tensor for tensor in tensors_in(made) if tensor.untyped_storage()._cdata not in inputs]
                for old, new in zip(before, fresh, strict=True):
                    old.copy_(new)


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for member in value.values() for tensor in tensors_in(member)]
    if isinstance(value, (list, tuple)):
        return [tensor for member in value for tensor in tensors_in(member)]
    return []


class ReplayRecorder:
    """Counts what it did."""

    def __init__(self) -> None:
        self.warmed = self.recorded = self.repeated = self.released = 0

    def warm_up(self, work: Callable[[], object]) -> None:
        self.warmed += 1
        work()

    def record(self, work: Callable[[], object], generators: Sequence[torch.Generator]) -> Callable[[], object]:
        tape = Repeated()
        before = [generator.get_state() for generator in generators]
        try:
            with tape:
                work()
        except TypeError as error:
            for generator, state in zip(generators, before, strict=True):
                generator.set_state(state)
            raise step_graphs.Unrecordable(str(error)) from error
        self.recorded += 1

        def again() -> None:
            self.repeated += 1
            tape.again()

        return again

    def release(self) -> None:
        self.released += 1


class CaptureMode(Repeated):
    """As a CUDA graph is captured: nothing that was there before is changed by it. Only a replay has effects."""

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[int, tuple[Any, Tensor]] = {}  # by storage: that storage and a copy of its bytes
        self._own: dict[int, Any] = {}  # storages that were made meanwhile

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # the schema of batch normalisation hides that it writes its running statistics
        writes = func._schema.is_mutable or func._schema.name.endswith("batch_norm")
        for tensor in tensors_in((args, kwargs)) if writes else ():
            memory = tensor.untyped_storage()
            if memory._cdata not in self._own:
                self._before.setdefault(memory._cdata, (memory, as_bytes(memory).clone()))
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors_in((args, kwargs or {}))}
        made = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tensors_in(made):
            if (memory := tensor.untyped_storage())._cdata not in inputs:
                self._own[memory._cdata] = memory
        return made

    def undo(self) -> None:
        for memory, before in self._before.values():
            as_bytes(memory).copy_(before)
        self._before = {}


def as_bytes(memory: Any) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(memory)
