"""Whether a phase of a training fits into memory, estimated from a step on a few images before the first real one.

The refusal names the memory that is needed and free, and a batch size that should fit. A step that runs out of memory
nevertheless is answered from the same estimate.
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
from ml.training import devices, memory

GIGABYTE = 1e9
MOMENTS = {"momentum": 1, "betas": 2}  # optimiser setting -> tensors like each parameter that the optimiser keeps


class MemoryEstimate(NamedTuple):
    """What a phase needs and what was free before its first step."""

    need: memory.MemoryNeed
    free: int  # bytes

    def check(self, batch_size: int) -> None:
        """Raise OutOfMemory if the phase cannot fit with this batch size."""
        need = self.need.at(batch_size)
        if memory.cannot_fit(need, self.free):
            raise errors.OutOfMemory(
                f"training with batch_size {batch_size} needs about {need / GIGABYTE:.1f} GB of memory beside the data "
                f"and the weights, and {self.free / GIGABYTE:.1f} GB are free",
                self.need.fitting(batch_size, self.free),
                by_neighbour=devices.neighbours_bytes() > 0,
            )

    def fitting(self, batch_size: int) -> int | None:
        """A batch size that should fit where `batch_size` has just run out of memory; None if there is none."""
        return self.need.fitting(batch_size, min(self.free, self.need.at(batch_size)))


class NoOpOptimizer(torch.optim.Optimizer):
    """Owns the parameters of another optimiser and never changes them."""

    def __init__(self, other: torch.optim.Optimizer) -> None:
        super().__init__([{"params": group["params"]} for group in other.param_groups], {})

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Do nothing."""


def no_op_optimizers(optimizers: Optimizers) -> Optimizers:
    """Optimizers of the same parameters that never change them."""
    return Optimizers(tuple(NoOpOptimizer(member) for member in optimizers.members), optimizers.factor)


@contextlib.contextmanager
def preserve_state(method: nn.Module) -> Iterator[None]:
    """Restore buffers, gradients and mode of a module afterwards. Parameters must not be changed inside."""
    buffers = [
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
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer  # a step may have put another tensor in its place
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient


def estimate(
    method: nn.Module,
    build_batch: Callable[[int], Batch],
    step: Callable[[Batch, Optimizers], object],
    evaluate: Callable[[int], object],
    *,
    rows: tuple[int, ...],
    eval_rows: int,
    optimizers: Optimizers,
    device: torch.device,
    group: process_group.ProcessGroup | None = None,
) -> MemoryEstimate:
    """Run a step and an evaluation on a few images and count what they allocate. The method is left as it was.

    Args:
        method: The method that is trained.
        build_batch: Builds a batch of so many images of each kind. What it draws, the caller restores.
        step: Takes a training step on a batch with the given optimizers.
        evaluate: Evaluates so many images without gradients.
        rows: Images of each kind (labelled, unlabelled) in a real step. They are taken to cost alike.
        eval_rows: Images of a real evaluation batch, maybe 0.
        optimizers: Those of the phase.
        device: Where the training runs.
        group: Its ranks, if there are several. All get the same estimate, by the rank with the least memory.
    """
    ranks = 1 if group is None else group.size
    sizes = (2 * ranks, 3 * ranks)  # every rank has rows
    frozen = no_op_optimizers(optimizers)
    with preserve_state(method), devices.without_search():
        build_batch(2)  # what is made for the first batch and stays, like padded images, is no part of a step
        free = memory.free_bytes(device)
        if group is not None:
            free = group.minimum(free // ranks if device.type == "cpu" else free)  # ranks share a machine's memory
        step_cost = memory.measure_cost(lambda size: step(build_batch(size).without_recording(), frozen), sizes)
        eval_peak = memory.measure_cost(evaluate, sizes).peak(eval_rows) if eval_rows else 0
    need = memory.MemoryNeed(optimizer_bytes(optimizers), step_cost, eval_peak, 1 / len(rows), sum(rows))
    return MemoryEstimate(need, free)


def optimizer_bytes(optimizers: Optimizers) -> int:
    """Bytes that optimizers allocate for their state in their first step."""
    total = 0
    for member in optimizers.members:
        for group in member.param_groups:
            copies = sum(number for setting, number in MOMENTS.items() if group.get(setting))
            fresh = [p for p in group["params"] if p.requires_grad and not member.state.get(p)]
            total += copies * sum(p.numel() * p.element_size() for p in fresh)
    return total
