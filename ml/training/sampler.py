"""The timetable of an epoch: which images each of its steps shows, turn by turn.

It draws and remembers positions; what is at a position - an image, a label - it does not know.

Shapes: `M` positions of the method, `n` of them in a pool, `B` images of a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ml.blocks.pool_union import positions
from ml.data import image_store
from ml.method import Pass

FEWEST_ROWS = 2  # batch statistics of one image are none
LABELLED, UNLABELLED = "labelled/", "unlabelled/"  # prefixes of the state's names


class StepIndices(NamedTuple):
    """What one step shows."""

    pass_index: int
    labelled: Tensor  # int64 (B,)
    unlabelled: Tensor | None  # int64 (B',): the images beside them, none twice
    passed: float  # of the turn, in [0, 1)

    @property
    def shown(self) -> tuple[Tensor, ...]:
        """The positions of every kind that there is."""
        return (self.labelled,) if self.unlabelled is None else (self.labelled, self.unlabelled)


class PassOrder(NamedTuple):
    """One turn, in its order."""

    order: Tensor  # int64 (n,)
    unlabelled: Tensor | None  # int64 (steps, B')


class EpochSampler:
    """All steps of an epoch; one step shows `batch_size` images, labelled and unlabelled ones together."""

    def __init__(self, passes: Sequence[PassOrder], batch_size: int) -> None:
        """Use `drawn` or `restored`."""
        self._passes = passes
        self._rows = [_labelled_rows(batch_size, pass_index.unlabelled) for pass_index in passes]
        self._steps = [image_store.step_count(len(t.order), rows) for t, rows in zip(passes, self._rows, strict=True)]
        self.steps = sum(self._steps)
        self.is_empty = any(len(pass_index.order) == 0 for pass_index in passes)
        # a single image is shown twice
        self.labelled = sum(max(FEWEST_ROWS, len(pass_index.order)) for pass_index in passes)

    @classmethod
    def drawn(cls, passes: Sequence[Pass], batch_size: int, generator: torch.Generator, device: torch.device) -> Self:
        """Every pool in an order of its own; `generator` is on the CPU."""
        found = []
        for pass_index in passes:
            order = _shuffled(positions(pass_index.pool.cpu()), generator)
            unlabelled = None
            if pass_index.unlabelled is not None and len(others := positions(pass_index.unlabelled.cpu())):
                rows = min(max(FEWEST_ROWS, round(pass_index.share * batch_size)), max(FEWEST_ROWS, len(others)))
                steps = image_store.step_count(len(order), max(FEWEST_ROWS, batch_size - rows))
                unlabelled = _rounds(others, steps, rows, generator).to(device)
            found.append(PassOrder(order.to(device), unlabelled))
        return cls(found, batch_size)

    def slot(self, position: int) -> StepIndices:
        """What step `position` of the epoch shows."""
        pass_index = 0
        while position >= self._steps[pass_index]:
            position -= self._steps[pass_index]
            pass_index += 1
        order, unlabelled = self._passes[pass_index]
        labelled = image_store.batch_rows(order, position, self._rows[pass_index])
        return StepIndices(
            pass_index,
            labelled,
            None if unlabelled is None else unlabelled[position],
            position / self._steps[pass_index],
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors to restore from."""
        labelled = {f"{LABELLED}{number}": pass_index.order for number, pass_index in enumerate(self._passes)}
        unlabelled = {f"{UNLABELLED}{number}": pass_index.unlabelled for number, pass_index in enumerate(self._passes)}
        return labelled | {name: tensor for name, tensor in unlabelled.items() if tensor is not None}

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], batch_size: int, device: torch.device) -> Self:
        """What `state` described."""
        placed = {name: tensor.to(device) for name, tensor in tensors.items()}
        count = sum(name.startswith(LABELLED) for name in placed)
        passes = [PassOrder(placed[f"{LABELLED}{i}"], placed.get(f"{UNLABELLED}{i}")) for i in range(count)]
        return cls(passes, batch_size)


def _labelled_rows(batch_size: int, unlabelled: Tensor | None) -> int:
    return batch_size if unlabelled is None else max(FEWEST_ROWS, batch_size - unlabelled.shape[1])


def _shuffled(pool: Tensor, generator: torch.Generator) -> Tensor:
    return pool[torch.randperm(len(pool), generator=generator)]


def _rounds(pool: Tensor, steps: int, rows: int, generator: torch.Generator) -> Tensor:
    """(steps, rows): the pool round after round, each in a new order and without its incomplete last step."""
    pool = pool.repeat(FEWEST_ROWS) if len(pool) == 1 else pool
    whole = len(pool) // rows
    rounds = [_shuffled(pool, generator)[: whole * rows].view(whole, rows) for _ in range(math.ceil(steps / whole))]
    return torch.cat(rounds)[:steps]
