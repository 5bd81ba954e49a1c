"""The course of a training: which phase an epoch belongs to, and how far the schedules have run. Arithmetic alone.

Phases follow each other; one without optimizers of its own goes on with those of the phase before, and the schedule
runs on over all that share them. Epochs are counted from 0 over all phases.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml.phase import Phase


class Course:
    """Phases in their order."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self._ends = [sum(stretch.epochs for stretch in self.phases[: i + 1]) for i in range(len(self.phases))]
        self.epochs = self._ends[-1]

    def number(self, epoch: int) -> int:
        """The number of the phase of an epoch."""
        return next(number for number, end in enumerate(self._ends) if epoch < end)

    def owner(self, number: int) -> int:
        """The phase whose optimizers phase `number` uses: its own, or those of the last one that built any."""
        return max(i for i in range(number + 1) if self.phases[i].optimizers is not None)

    def progress(self, number: int, epoch: float) -> float:
        """How much of all the phases that share phase `number`'s optimizers lies behind, in [0, 1)."""
        owner = self.owner(number)
        start = self._ends[owner] - self.phases[owner].epochs
        heirs = [i for i in range(owner + 1, len(self.phases)) if self.phases[i].optimizers is not None]
        end = self._ends[heirs[0] - 1] if heirs else self.epochs
        return (epoch - start) / (end - start)
