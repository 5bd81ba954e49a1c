"""The course of a training: which phase an epoch belongs to, and how far the schedules have run.

Phases follow each other; one without optimizers of its own goes on with those of the phase before, and the schedule
runs on over all that share them. Epochs are counted from 0 over all phases. It takes no step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ml.method import Optimizers, Phase


class PhaseSchedule:
    """Phases in their order."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        self._ends = [sum(phase.epochs for phase in self.phases[: i + 1]) for i in range(len(self.phases))]
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

    def optimizers(self, number: int) -> Optimizers:
        """Those of phase `number`, freshly built; of -1, before the first phase, there are none."""
        if number < 0:
            return Optimizers((), lambda progress: 1.0)
        build = self.phases[self.owner(number)].optimizers
        assert build is not None
        built = build()
        for group in built.groups:
            group.setdefault("initial_lr", group["lr"])
        return built

    def set_rates(self, optimizers: Optimizers, number: int, epoch: float) -> None:
        """Move the learning rates of phase `number` to where they are after `epoch` epochs."""
        factor = optimizers.factor(self.progress(number, epoch))
        constant_rate = {id(member) for member in optimizers.constant_rate}
        for member in optimizers.members:
            for group in member.param_groups:
                group["lr"] = _as_f32(group["initial_lr"] * (1.0 if id(member) in constant_rate else factor))


def _as_f32(number: float) -> float:
    """Rounded as it would be in a tensor, so that a recorded step and a written one take the same learning rate."""
    return float(np.float32(number))
