"""Draws which images every step of an epoch shows, pass by pass, and gives them step by step.

It knows positions only, not images or labels.

Shapes: `M` images trained on, `n` of them in a pool, `B` labelled and `B'` unlabelled images of a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ml.blocks.pool_union import pool_positions
from ml.data import image_store
from ml.method import Pass

MIN_ROWS = 2  # batch normalisation has no statistics of a single image
LABELLED, UNLABELLED = "labelled/", "unlabelled/"  # prefixes of the state's names


class StepIndices(NamedTuple):
    """The images of one step, as positions among those trained on."""

    pass_index: int  # which pass of the epoch
    labelled: Tensor  # int64 (B,)
    unlabelled: Tensor | None  # int64 (B',), none twice; None where the pass has none
    progress: float  # of the pass, in [0, 1)

    @property
    def positions(self) -> tuple[Tensor, ...]:
        """The labelled positions and, where there are any, the unlabelled ones."""
        return (self.labelled,) if self.unlabelled is None else (self.labelled, self.unlabelled)


class PassOrder(NamedTuple):
    """The images of one pass in the order that was drawn."""

    labelled: Tensor  # int64 (n,)
    unlabelled: Tensor | None  # int64 (steps, B')


class EpochSampler:
    """All steps of one epoch.

    Attributes:
        steps: Number of steps.
        labelled: Number of labelled images that all steps show together.
        is_empty: Whether a pass has no image to show.
    """

    def __init__(self, orders: Sequence[PassOrder], batch_size: int) -> None:
        """Use `draw` or `from_state`."""
        self._orders, self._batch_size = orders, batch_size
        self._rows = [_labelled_rows(batch_size, order.unlabelled) for order in orders]
        self._steps = [
            image_store.step_count(len(order.labelled), rows) for order, rows in zip(orders, self._rows, strict=True)
        ]
        self.steps = sum(self._steps)
        self.is_empty = any(len(order.labelled) == 0 for order in orders)
        # a single image is shown twice
        self.labelled = sum(max(MIN_ROWS, len(order.labelled)) for order in orders)

    @classmethod
    def draw(cls, passes: Sequence[Pass], batch_size: int, generator: torch.Generator, device: torch.device) -> Self:
        """Shuffle the pools of an epoch.

        Args:
            passes: The passes of the epoch, in their order.
            batch_size: Images of a step, labelled and unlabelled ones together.
            generator: Draws the orders, on the CPU.
            device: Where the positions are needed.
        """
        orders = []
        for one_pass in passes:
            labelled = _shuffled(pool_positions(one_pass.pool.cpu()), generator)
            unlabelled = None
            if one_pass.unlabelled is not None and len(pool := pool_positions(one_pass.unlabelled.cpu())):
                rows = min(max(MIN_ROWS, round(one_pass.share * batch_size)), max(MIN_ROWS, len(pool)))
                steps = image_store.step_count(len(labelled), max(MIN_ROWS, batch_size - rows))
                unlabelled = _rounds(pool, steps, rows, generator).to(device)
            orders.append(PassOrder(labelled.to(device), unlabelled))
        return cls(orders, batch_size)

    def at(self, step: int) -> StepIndices:
        """The images of a step of this epoch, 0 to `steps` - 1."""
        pass_index = 0
        while step >= self._steps[pass_index]:
            step -= self._steps[pass_index]
            pass_index += 1
        order = self._orders[pass_index]
        labelled = image_store.batch_rows(order.labelled, step, self._rows[pass_index])
        unlabelled = None if order.unlabelled is None else order.unlabelled[step]
        return StepIndices(pass_index, labelled, unlabelled, step / self._steps[pass_index])

    def positions_from(self, step: int) -> Iterator[Tensor]:
        """The images of the steps from `step` on, on the CPU: of each step the labelled, then the unlabelled ones."""
        on_cpu = EpochSampler.from_state(self.state(), self._batch_size, torch.device("cpu"))
        for number in range(step, self.steps):
            yield from on_cpu.at(number).positions

    def state(self) -> dict[str, Tensor]:
        """The orders that were drawn, by name, for `from_state`."""
        labelled = {f"{LABELLED}{number}": order.labelled for number, order in enumerate(self._orders)}
        unlabelled = {f"{UNLABELLED}{number}": order.unlabelled for number, order in enumerate(self._orders)}
        return labelled | {name: tensor for name, tensor in unlabelled.items() if tensor is not None}

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], batch_size: int, device: torch.device) -> Self:
        """The sampler whose `state` is `tensors`."""
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        count = sum(name.startswith(LABELLED) for name in tensors)
        orders = [PassOrder(tensors[f"{LABELLED}{i}"], tensors.get(f"{UNLABELLED}{i}")) for i in range(count)]
        return cls(orders, batch_size)


def _labelled_rows(batch_size: int, unlabelled: Tensor | None) -> int:
    return batch_size if unlabelled is None else max(MIN_ROWS, batch_size - unlabelled.shape[1])


def _shuffled(pool: Tensor, generator: torch.Generator) -> Tensor:
    return pool[torch.randperm(len(pool), generator=generator)]


def _rounds(pool: Tensor, steps: int, rows: int, generator: torch.Generator) -> Tensor:
    """(steps, rows): the pool again and again, each time in a new order and without its incomplete last step."""
    pool = pool.repeat(MIN_ROWS) if len(pool) == 1 else pool
    whole_steps = len(pool) // rows
    count = math.ceil(steps / whole_steps)
    rounds = [_shuffled(pool, generator)[: whole_steps * rows].view(whole_steps, rows) for _ in range(count)]
    return torch.cat(rounds)[:steps]
