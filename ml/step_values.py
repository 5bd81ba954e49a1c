"""What stands for the epoch and the progress while a step is recorded, so that no recording repeats their numbers.

It imports nothing: methods see it through `ml.method.Batch`, and `ml.training.step_graphs` makes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def _refuse(self: object, *_: object) -> Any:
    raise TypeError("a recorded step needs a value that changes from step to step")


class DynamicValue:
    """Stands for a number that changes from step to step. Using it raises TypeError, so recording fails."""

    __hash__ = None  # type: ignore[assignment]
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse  # a plain object would compare
    __bool__ = __int__ = __index__ = __float__ = __round__ = _refuse
    __neg__ = __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _refuse


class RecordedEpoch(DynamicValue):
    """Stands for the epoch. Only functions of it may be used, and their values are remembered.

    A recording made with it serves every epoch in which these functions have the same values.
    """

    def __init__(self, epoch: int) -> None:
        """`epoch` is the one in which a step is recorded, from 0."""
        self._epoch = epoch
        self._uses: list[tuple[Callable[[int], Any], Any]] = []

    def derive(self, function: Callable[[int], T]) -> T:
        """`function` of the epoch; it must depend on nothing else that changes."""
        value = function(self._epoch)
        self._uses.append((function, value))
        return value

    def serves(self, epoch: int) -> bool:
        """Whether all that was derived is the same in another epoch."""
        return all(function(epoch) == value for function, value in self._uses)
