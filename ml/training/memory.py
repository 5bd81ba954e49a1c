"""How much memory a step takes at any batch size, and how much there is.

A step is tried with a few images while every tensor's birth and death is counted. The same operations run at any batch
size, so what lives after each of them is a line in the number of images: two small tries tell the peak of a large one.
Not counted is what an operation uses for itself, and what an allocator rounds up or cannot join: measured, a CPU's
process grows by 1.3 to 1.8 times the prediction, so a refusal is safe and an offer takes a margin.

It knows no method and no data set.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

REFUSED = 1.25  # times what is free: a need below it is tried
OFFERED = 0.6  # of what is free: a batch size that needs less should fit
UNLIMITED = 1 << 62
CGROUPS, PROC = Path("/sys/fs/cgroup"), Path("/proc")
CGROUP_FILE_CACHE = ("inactive_file", "active_file")  # counted as used, and given back when somebody needs it


class AllocationTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Counts the bytes of the tensors that operations make while it is entered; `course` holds them after each one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.course: list[int] = []
        self._now = 0
        self._alive: dict[int, object] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(tensor) for tensor in _tensors((*args, *(kwargs or {}).values()))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made if isinstance(made, (tuple, list)) else (made,)):
            if _address(tensor) not in given:  # else a view, or written in place
                self._count(tensor)
        self.course.append(self._now)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._alive:
            return
        size = storage.nbytes()
        self._now += size

        def gone(_: object) -> None:
            self._now -= size
            self._alive.pop(address, None)

        self._alive[address] = weakref.ref(storage, gone)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):  # of a fused operation
            yield from _tensors(value)


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class Cost(NamedTuple):
    """Bytes that live after each operation of some work: `fixed + images * each`."""

    fixed: Tensor  # float64 (operations,)
    each: Tensor  # float64 (operations,)

    def peak(self, images: float) -> int:
        """The most that lives at once."""
        return int((self.fixed + images * self.each).max().clamp(min=0))


def cost(work: Callable[[int], object], sizes: tuple[int, int] = (2, 3)) -> Cost:
    """What `work` of so many images makes, from doing it with two small numbers of them."""
    courses = []
    for size in sizes:
        ledger = AllocationTracer()
        with ledger:
            work(size)
        courses.append(torch.tensor(ledger.course, dtype=torch.float64))
    few, more = courses
    if len(few) != len(more):  # a branch that depends on the images: the peaks alone
        few, more = few.max()[None], more.max()[None]
    each = (more - few) / (sizes[1] - sizes[0])
    return Cost(few - sizes[0] * each, each)


class Need(NamedTuple):
    """What a phase still has to allocate on its device, by batch size."""

    fixed: int  # bytes of momentum
    step: Cost  # by images of each kind
    measuring: int  # the peak of a pass without gradients, whose batches have a size of their own
    share: float = 1.0  # of a batch that is of one kind: half where some images are unlabelled
    most: int | None = None  # images that a batch can have

    def at(self, batch_size: int) -> int:
        """Bytes."""
        shown = batch_size if self.most is None else min(batch_size, self.most)
        return self.fixed + max(self.step.peak(shown * self.share), self.measuring)

    def fitting(self, batch_size: int, budget: float) -> int | None:
        """The largest size below `batch_size` that should fit into the budget: a multiple of 8, or 4 or 2."""
        sizes = [size for size in (2, 4, *range(8, batch_size, 8)) if size < batch_size]
        return max((size for size in sizes if self.at(size) <= OFFERED * budget), default=None)


def too_much(need: int, free: int) -> bool:
    """Whether this would not fit even if it took less than predicted."""
    return need > REFUSED * free


def free_bytes(device: torch.device) -> int:
    """What this process may still allocate on the device."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return min(available(PROC / "meminfo"), cgroup_free(CGROUPS, PROC / "self" / "cgroup"))


def available(meminfo: Path) -> int:
    """MemAvailable of the machine, in bytes."""
    for line in _lines(meminfo):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return UNLIMITED


def cgroup_free(root: Path, own: Path) -> int:
    """The smallest room below the limits of this process's cgroup (v2) and of those around it, in bytes."""
    names = [line.removeprefix("0::") for line in _lines(own) if line.startswith("0::")]
    room = UNLIMITED
    for name in names:
        parts = [part for part in name.strip("/").split("/") if part]
        for depth in range(len(parts) + 1):
            room = min(room, _room(root.joinpath(*parts[:depth])))
    return room


def _room(group: Path) -> int:
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if not limit or not used or not limit[0].isdigit():  # no such group, or "max"
        return UNLIMITED
    facts = dict(line.split(maxsplit=1) for line in _lines(group / "memory.stat"))
    cached = sum(int(facts.get(name, 0)) for name in CGROUP_FILE_CACHE)
    return max(0, int(limit[0]) - int(used[0]) + cached)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
