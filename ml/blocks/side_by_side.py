"""Runs the same part of two networks side by side: on a GPU, the second one on a stream of its own.

A small network leaves most of a GPU idle. In a recorded step (`ml.training.step_graphs`) the operations of two networks
that do not depend on each other become two branches of one CUDA graph, and so do those of their backward passes, which
autograd runs on the stream of the forward pass. Elsewhere nothing would be gained, as launching takes the time: one
network runs after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

A = TypeVar("A")
B = TypeVar("B")

_second: torch.cuda.Stream | None = None  # where the second part runs now; None: where the first does


@contextlib.contextmanager
def second_stream(stream: torch.cuda.Stream) -> Iterator[None]:
    """Inside, `run` runs its second part on this stream."""
    global _second
    before, _second = _second, stream
    try:
        # what one stream has allocated and the other one saves for its backward pass must not be reused before that
        with torch.autograd.graph.saved_tensors_hooks(_note_stream, _same):
            yield
    finally:
        _second = before


def run(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """The results of both parts; `first` is called first, so that random numbers are drawn in this order.

    Args:
        first: One part.
        second: The other one. Neither reads what the other writes, nor writes what it reads or writes.
    """
    if _second is None:
        return first(), second()
    outside = torch.cuda.current_stream()
    _second.wait_stream(outside)  # it begins where the first one does
    one = first()
    with torch.cuda.stream(_second):
        two = second()
    outside.wait_stream(_second)
    return one, two


def one_after_the_other(first: Callable[[], A], second: Callable[[], B]) -> tuple[A, B]:
    """As `run`, for parts that share something."""
    return first(), second()


def forward(networks: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """Logits (B, C) of one network or of two, side by side, for images (B, 3, H, W)."""
    if len(networks) == 1:
        return [networks[0](images)]
    one, two = networks
    return list(run(lambda: one(images), lambda: two(images)))


def _note_stream(tensor: Tensor) -> Tensor:
    if tensor.is_cuda:
        tensor.record_stream(torch.cuda.current_stream())
    return tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor
