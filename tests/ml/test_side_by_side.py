"""Two networks side by side: in their order without streams, and with streams ordered wherever they meet.

There is no GPU here. Streams are stubs with clocks: what each has done, and what it knows of the other. So a read that
no wait has ordered after the write shows, as it would as a race on a GPU. What autograd does on streams, and whether it
is faster, only `tests.gpu.check` can tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ml.blocks import side_by_side
from ml.data.dataset import LabeledImages
from ml.method import Phase
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer


class Stream:
    """Knows how far every stream has come that it has waited for."""

    def __init__(self, name: str) -> None:
        self.name, self.known = name, {name: 0}

    def wait_stream(self, other: Stream) -> None:
        for name, time in other.known.items():
            self.known[name] = max(self.known.get(name, 0), time)


class Streams(TorchDispatchMode):
    """Runs operations on a CPU as if on the current stream, and notes those that no wait has ordered.

    Attributes:
        races: Operations that read or write what another stream has written, or write what it has read.
        used: Names of the streams on which operations ran.
    """

    def __init__(self, main: Stream) -> None:
        super().__init__()
        self.current = main
        self.races: list[str] = []
        self.used: set[str] = set()
        self._written: dict[int, tuple[str, int]] = {}  # by storage: the last write
        self._read: dict[int, dict[str, int]] = {}  # by storage: the last read of each stream
        self._alive: list[Any] = []  # storages, so that none has the address of another

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.used.add(self.current.name)
        made = func(*args, **(kwargs or {}))
        now = self.current.known[self.current.name] = self.current.known[self.current.name] + 1
        written = {
            storage(tensor)
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for tensor in tensors_in(value)
        }
        if func._schema.name.endswith("batch_norm"):  # the schema of the functional form hides its running statistics
            written |= {storage(tensor) for tensor in args[3:5] if tensor is not None}
        for tensor in tensors_in((args, kwargs)):
            address = storage(tensor)
            self._check(func, self._written.get(address))
            if address in written:
                for reader in self._read.get(address, {}).items():
                    self._check(func, reader)
            self._read.setdefault(address, {})[self.current.name] = now
        inputs = {storage(tensor) for tensor in tensors_in((args, kwargs))}  # whose views are made without a write
        for address in {*written, *({storage(tensor) for tensor in tensors_in(made)} - inputs)}:
            self._written[address] = (self.current.name, now)
        self._alive += [tensor.untyped_storage() for tensor in tensors_in((args, kwargs, made))]
        return made

    def _check(self, func: Any, use: tuple[str, int] | None) -> None:
        if use is not None and self.current.known.get(use[0], 0) < use[1]:
            self.races.append(f"{func} on {self.current.name} after {use[0]}")


def tensors_in(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    members = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for member in members for tensor in tensors_in(member)]


def storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    mode = Streams(Stream("main"))

    @contextlib.contextmanager
    def on(stream: Stream) -> Iterator[None]:
        outside, mode.current = mode.current, stream
        try:
            yield
        finally:
            mode.current = outside

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: mode.current)
    monkeypatch.setattr(torch.cuda, "stream", on)
    return mode


def losses_of(changes: dict[str, Any], labeled: LabeledImages, spec: Callable[..., TrainingSpec]) -> Callable[[], Any]:
    """A function that computes the loss of a training's first batch."""
    training = Trainer.build(spec(**changes), labeled)
    phase, sampler = training.begin_epoch()
    indices = sampler.at(0)
    batch = training.batches.build(phase, 0, indices.positions, epoch=2, progress=0.5)
    training.method.train()

    def loss(phase: Phase = phase) -> torch.Tensor:
        return phase.loss(batch)

    return loss


@pytest.mark.parametrize(
    ("changes", "used"),
    [
        ({"method": "ce"}, {"main"}),
        ({"method": "ce", "params": {"networks": 2, "agreement": "both"}}, {"main", "second"}),
        ({"method": "co_teaching"}, {"main", "second"}),
        ({"method": "jocor"}, {"main", "second"}),
        ({"method": "denll"}, {"main", "second"}),
        ({"method": "denll", "params": {"localization": "label_free"}}, {"main", "second"}),
        ({"method": "denll", "params": {"host": "elr"}}, {"main", "second"}),
        ({"method": "denll", "params": {"host": "mixup"}}, {"main", "second"}),
        ({"method": "denll", "params": {"split": "median"}}, {"main"}),  # both networks use the mask
        ({"method": "denll", "params": {"loss": "gated", "gates": "joint"}}, {"main"}),  # each loss runs both networks
        ({"method": "dividemix"}, {"main"}),  # which trains one network after the other
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_no_stream_reads_what_the_other_still_writes(
    changes: dict[str, Any], used: set[str], streams: Streams, labeled: LabeledImages, spec: Callable[..., TrainingSpec]
) -> None:
    plain = losses_of(changes, labeled, spec)()
    loss = losses_of(changes, labeled, spec)
    with streams, side_by_side.second_stream(Stream("second")):  # type: ignore[arg-type]
        branched = loss()

    assert streams.races == []
    assert streams.used == used
    assert torch.equal(plain, branched)


def test_networks_that_share_a_part_would_race(streams: Streams) -> None:
    """The stub shows it: the running statistics of the shared layer."""
    shared = nn.BatchNorm1d(3)
    networks = nn.ModuleList(nn.Sequential(nn.Linear(2, 3), shared) for _ in range(2))
    with streams, side_by_side.second_stream(Stream("second")):  # type: ignore[arg-type]
        side_by_side.forward(networks, torch.ones(4, 2))

    assert streams.races


def test_parts_run_in_their_order_and_join() -> None:
    order: list[str] = []
    assert side_by_side.run(lambda: order.append("one"), lambda: order.append("two")) == (None, None)
    assert side_by_side.one_after_the_other(lambda: 1, lambda: "b") == (1, "b")
    assert order == ["one", "two"]


def test_a_part_that_fails_leaves_no_stream_behind(streams: Streams) -> None:
    def fail() -> None:
        raise TypeError("a recorded step needs a value that changes from step to step")

    with (
        contextlib.suppress(TypeError),
        side_by_side.second_stream(Stream("second")),  # type: ignore[arg-type]
    ):
        side_by_side.run(lambda: 1, fail)

    assert streams.current.name == "main"
    with streams:
        side_by_side.run(lambda: torch.ones(1), lambda: torch.ones(1))
    assert streams.used == {"main"}
