"""What a training step changes on its device: to undo a step, and to compare the outcomes of two.

Used where a recorded step is checked against the eager one (`ml.training.step_graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Of a step's effect, where algorithms do not repeat their results: the norm of the difference over that of the change.
# Two eager steps differ by rounding, far less; a number that was wrongly repeated changes a step by far more.
TOLERANCE = 0.02


class Snapshot(NamedTuple):
    """The state at one moment."""

    tensors: dict[str, Tensor]  # copies
    generators: list[Tensor]  # their states, as bytes


class StepState:
    """The tensors and the generators that a step may change. All of them are changed in place."""

    def __init__(
        self, tensors: Callable[[], Mapping[str, Tensor]], generators: Callable[[], Sequence[torch.Generator]]
    ) -> None:
        """Bind to a training.

        Args:
            tensors: All that a step may change or depends on, not copied. A name's part before the first `/` is its
                kind: those of one kind are compared together.
            generators: All that it may draw from.
        """
        self._tensors, self._generators = tensors, generators

    def layout(self) -> Hashable:
        """Where all tensors lie and what they are, and which generators there are: a recording works on these."""
        tensors = (
            (name, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
            for name, tensor in self._tensors().items()
        )
        return (*tensors, *map(id, self._generators()))

    def copy(self) -> Snapshot:
        """The state as it is now. Raises torch.OutOfMemoryError if the device has no room for it."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        return Snapshot(tensors, [generator.get_state() for generator in self._generators()])

    def restore(self, before: Snapshot) -> None:
        """Set everything to what it was, in place."""
        for name, tensor in self._tensors().items():
            tensor.detach().copy_(before.tensors[name])
        for generator, state in zip(self._generators(), before.generators, strict=True):
            generator.set_state(state)

    def difference(self, before: Snapshot, expected: Snapshot, *, exact: bool) -> str | None:
        """How the state differs from the expected one, in words; None if it does not.

        Args:
            before: The state before the step, by which differences are measured.
            expected: What the step should have made of it.
            exact: Every bit counts; otherwise up to `TOLERANCE` of the step's effect is rounding.
        """
        names = list(expected.tensors)
        actual = self._tensors()
        if list(actual) != names:
            return "it has other tensors"
        for generator, state in zip(self._generators(), expected.generators, strict=True):
            if not torch.equal(generator.get_state(), state):
                return "it draws other random numbers"
        kinds: dict[str, list[str]] = {}
        for name in names:
            kinds.setdefault(name.partition("/")[0], []).append(name)
        for kind, members in kinds.items():
            share = max(
                _unequal_share([(actual[name].detach(), expected.tensors[name]) for name in members], exact=exact),
                _relative_distance(
                    [
                        (actual[name].detach(), expected.tensors[name], before.tensors[name])
                        for name in members
                        if actual[name].is_floating_point()
                    ]
                ),
            )
            if share > (0.0 if exact else TOLERANCE):
                return f"{kind} differ by {share:.2g} of what the step changes"
        return None


def _unequal_share(pairs: Sequence[tuple[Tensor, Tensor]], *, exact: bool) -> float:
    """The largest share of unequal elements of a tensor; of floating tensors only where exactness counts."""
    shares = [
        (~_same(actual, expected)).float().mean()
        for actual, expected in pairs
        if actual.numel() and (exact or not actual.is_floating_point())
    ]
    return float(torch.stack(shares).max()) if shares else 0.0


def _relative_distance(triples: Sequence[tuple[Tensor, Tensor, Tensor]]) -> float:
    """|actual - expected| / |expected - before| of all tensors together; infinite if one of two alone has a NaN."""
    if not triples:
        return 0.0
    distance = torch.stack([_square(actual, expected, torch.inf) for actual, expected, _ in triples]).sum().sqrt()
    change = torch.stack([_square(expected, before, 0.0) for _, expected, before in triples]).sum().sqrt()
    return float((distance / change.clamp_min(torch.finfo(change.dtype).tiny)).nan_to_num(torch.inf))


def _square(one: Tensor, two: Tensor, missing: float) -> Tensor:
    """|one - two|² in f64, a scalar; NaN and infinity in both count as 0, NaN in one of them as `missing`."""
    distance = (one - two).masked_fill(_same(one, two), 0.0).nan_to_num(missing, torch.inf, -torch.inf)
    norm: Tensor = torch.linalg.vector_norm(distance.flatten(), dtype=torch.float64)
    return norm.square()


def _same(one: Tensor, two: Tensor) -> Tensor:
    return (one == two) | (one.isnan() & two.isnan())
