"""Whether a phase of a training fits into memory, found out by trying a step on a few images without leaving a trace.

The refusal comes before the first step and names what is needed, what is free and a batch size that should fit. A step
that runs out of memory all the same is answered from the same figures. Knows no method; what a step is, the loop says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from ml import errors
from ml.distributed import process_group
from ml.method import Batch, Optimizers
from ml.training import memory

GIGABYTE = 1e9
MOMENTS = {"momentum": 1, "betas": 2}  # an optimiser's setting -> how many more tensors like each parameter it keeps


class MemoryEstimate(NamedTuple):
    """What a phase needs, and what was free before its first step."""

    need: memory.Need
    free: int

    def check(self, batch_size: int) -> None:
        """OutOfMemory if the phase cannot fit."""
        need = self.need.at(batch_size)
        if memory.too_much(need, self.free):
            raise errors.OutOfMemory(
                f"training with batch_size {batch_size} needs about {need / GIGABYTE:.1f} GB of memory beside the data "
                f"and the weights, and {self.free / GIGABYTE:.1f} GB are free",
                self.need.fitting(batch_size, self.free),
            )

    def fitting(self, batch_size: int) -> int | None:
        """A size that should fit where `batch_size` has just not."""
        return self.need.fitting(batch_size, min(self.free, self.need.at(batch_size)))


class NoOpOptimizer(torch.optim.Optimizer):
    """Owns parameters and leaves them as they are."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        super().__init__([{"params": group["params"]} for group in other.param_groups], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Nothing."""


def no_op_optimizers(optimizers: Optimizers) -> Optimizers:
    """The same owners, none of whom moves."""
    return Optimizers(tuple(NoOpOptimizer(member) for member in optimizers.members), optimizers.factor)


@contextlib.contextmanager
def preserve_state(method: nn.Module) -> Iterator[None]:
    """A block after which buffers, gradients and mode are as before it."""
    kept = [
        (module, name, buffer, None if buffer is None else buffer.clone())
        for module in method.modules()
        for name, buffer in module._buffers.items()
    ]
    gradients = [(parameter, parameter.grad) for parameter in method.parameters()]
    training = method.training
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        method.train(training)
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer  # a step may have put another in its place
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def room(
    method: nn.Module,
    show: Callable[[int], Batch],
    take: Callable[[Batch, Optimizers], object],
    measure: Callable[[int], object],
    *,
    rows: tuple[int, ...],
    measured_rows: int,
    optimizers: Optimizers,
    device: torch.device,
    group: process_group.ProcessGroup | None = None,
) -> MemoryEstimate:
    """Try a step and a measurement, without a trace in the method: `show` makes a batch of so many images of each kind,
    `take` takes the step, `measure` goes through so many images without gradients.

    `rows`: images of each kind in a real step, taken to cost alike; `measured_rows` may be 0. What `show` draws, the
    caller puts back. All ranks of a `group` find the same room: that of the one that has the least.
    """
    width = 1 if group is None else group.size
    sizes = (2 * width, 3 * width)
    owners = no_op_optimizers(optimizers)
    with preserve_state(method):
        show(2)  # what is made with a first batch and stays, as padded images, is no part of a step
        free = memory.free_bytes(device)
        if group is not None:
            free = group.minimum(free // width if device.type == "cpu" else free)  # a machine's memory is shared by all
        stepping = memory.cost(lambda size: take(show(size).without_recording(), owners), sizes)
        measuring = memory.cost(measure, sizes).peak(measured_rows) if measured_rows else 0
    return MemoryEstimate(memory.Need(momentum_bytes(optimizers), stepping, measuring, 1 / len(rows), sum(rows)), free)


def momentum_bytes(optimizers: Optimizers) -> int:
    """What optimisers allocate in their first step."""
    total = 0
    for member in optimizers.members:
        for group in member.param_groups:
            copies = sum(number for setting, number in MOMENTS.items() if group.get(setting))
            fresh = [p for p in group["params"] if p.requires_grad and not member.state.get(p)]
            total += copies * sum(p.numel() * p.element_size() for p in fresh)
    return total
