"""How much memory a step allocates at any batch size, and how much is free.

A step runs on a few images while allocations and deallocations of tensors are traced. The same operations run at any
batch size, so the bytes in use after each of them grow linearly with the number of images, and two small runs predict
the peak of a large one. Not traced are the temporary buffers of an operation and what an allocator rounds up or cannot
reuse: measured, a process on a CPU grows by 1.3 to 1.8 times the prediction. So a phase is refused only far above what
is free, and a batch size is suggested only far below it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ml.training import host_memory

REFUSE_ABOVE = 1.25  # times the free memory: what is predicted to need less is tried
SUGGEST_BELOW = 0.6  # of the free memory: a batch size predicted to need less should fit


class AllocationTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts the bytes of tensors that operations allocate while the tracer is entered.

    Attributes:
        bytes_in_use: Of these tensors, after each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes_in_use: list[int] = []
        self._now = 0
        self._alive: dict[int, object] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_address(tensor) for tensor in _tensors((*args, *(kwargs or {}).values()))}
        outputs = func(*args, **(kwargs or {}))
        for tensor in _tensors(outputs if isinstance(outputs, (tuple, list)) else (outputs,)):
            if _address(tensor) not in inputs:  # else a view, or written in place
                self._count(tensor)
        self.bytes_in_use.append(self._now)
        return outputs

    def _count(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._alive:
            return
        size = storage.nbytes()
        self._now += size

        def freed(_: object) -> None:
            self._now -= size
            self._alive.pop(address, None)

        self._alive[address] = weakref.ref(storage, freed)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):  # of a fused operation
            yield from _tensors(value)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class LinearCost(NamedTuple):
    """Bytes in use after each operation of some work on a number of images: `fixed + images * per_image`."""

    fixed: Tensor  # float64 (operations,)
    per_image: Tensor  # float64 (operations,)

    def peak(self, images: float) -> int:
        """The most bytes that are in use at once."""
        return int((self.fixed + images * self.per_image).max().clamp(min=0))


def measure_cost(work: Callable[[int], object], sizes: tuple[int, int] = (2, 3)) -> LinearCost:
    """What some work allocates on any number of images, by running it on two small numbers.

    Args:
        work: Takes a number of images and runs on as many.
        sizes: The two numbers, the smaller first.
    """
    traces = []
    for size in sizes:
        tracer = AllocationTracer()
        with tracer:
            work(size)
        traces.append(torch.tensor(tracer.bytes_in_use, dtype=torch.float64))
    small, large = traces
    if len(small) != len(large):  # the operations depend on the images: compare the peaks alone
        small, large = small.max()[None], large.max()[None]
    per_image = (large - small) / (sizes[1] - sizes[0])
    return LinearCost(small - sizes[0] * per_image, per_image)


class MemoryNeed(NamedTuple):
    """What a phase will allocate on its device, as a function of the batch size."""

    optimizer: int  # bytes of the optimizers' state
    step: LinearCost  # by images of each kind (labelled, unlabelled)
    evaluation: int  # bytes at the peak of an evaluation, whose batch size is its own
    share: float = 1.0  # of a batch that is of one kind: 0.5 where some images are unlabelled
    max_images: int | None = None  # that a batch can have, since the data has no more

    def at(self, batch_size: int) -> int:
        """Bytes at this batch size."""
        images = batch_size if self.max_images is None else min(batch_size, self.max_images)
        return self.optimizer + max(self.step.peak(images * self.share), self.evaluation)

    def fitting(self, batch_size: int, free: float) -> int | None:
        """The largest size below `batch_size` that should fit into `free` bytes: a multiple of 8, or 4, 2 or None."""
        sizes = [size for size in (2, 4, *range(8, batch_size, 8)) if size < batch_size]
        return max((size for size in sizes if self.at(size) <= SUGGEST_BELOW * free), default=None)


def cannot_fit(need: int, free: int) -> bool:
    """Whether `need` predicted bytes cannot fit into `free` bytes, even if the prediction is too high."""
    return need > REFUSE_ABOVE * free


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still allocate: on a GPU, or on a CPU within the limits of its cgroups."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - reserved
        return max(0, min(int(free), allowed)) + reserved - torch.cuda.memory_allocated(device)
    return host_memory.free_bytes()
