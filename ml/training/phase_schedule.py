"""Which phase an epoch belongs to, and how the learning rates move.

Phases follow each other. A phase without optimizers of its own goes on with those of the phase before, and their
schedule runs over all phases that share them. Epochs are counted from 0 over all phases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.optim import Optimizer

from ml.method import Optimizers, Phase


class PhaseSchedule:
    """The phases of a training.

    Attributes:
        phases: In their order. A phase may have 0 epochs.
        epochs: Of all phases together.
    """

    def __init__(self, phases: Sequence[Phase], scale_rates: Callable[[Optimizer], None] = lambda _: None) -> None:
        """Take the phases.

        Args:
            phases: In their order.
            scale_rates: Changes the learning rates of every optimiser that a phase has built.
        """
        self.phases = tuple(phases)
        self._scale_rates = scale_rates
        self._ends = [sum(phase.epochs for phase in self.phases[: i + 1]) for i in range(len(self.phases))]
        self.epochs = self._ends[-1]

    def phase_of(self, epoch: int) -> int:
        """The number of the phase that an epoch belongs to."""
        return next(number for number, end in enumerate(self._ends) if epoch < end)

    def owner(self, number: int) -> int | None:
        """The phase whose optimizers phase `number` uses: itself, or the last one before it that built any.

        None if there is none, as phases without steps need none.
        """
        return max((i for i in range(number + 1) if self.phases[i].optimizers is not None), default=None)

    def progress(self, number: int, epoch: float) -> float:
        """How much of all phases with the optimizers of phase `number` is done after `epoch` epochs, in [0, 1)."""
        owner = self.owner(number)
        assert owner is not None, "a phase that takes steps has optimizers"
        start = self._ends[owner] - self.phases[owner].epochs
        later_owners = [i for i in range(owner + 1, len(self.phases)) if self.phases[i].optimizers is not None]
        end = self._ends[later_owners[0] - 1] if later_owners else self.epochs
        return (epoch - start) / (end - start)

    def build_optimizers(self, number: int) -> Optimizers:
        """The optimizers of phase `number`, newly built; empty where no phase so far has any (-1: before the first)."""
        owner = self.owner(number)
        if owner is None:
            return Optimizers((), lambda progress: 1.0)
        build = self.phases[owner].optimizers
        assert build is not None
        optimizers = build()
        for member in optimizers.members:
            self._scale_rates(member)
        for group in optimizers.groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizers

    def set_learning_rates(self, optimizers: Optimizers, number: int, epoch: float) -> None:
        """Set the learning rates of phase `number` after `epoch` epochs: initial rate times the schedule's factor."""
        factor = optimizers.factor(self.progress(number, epoch))
        constant = {id(member) for member in optimizers.constant_rate}
        for member in optimizers.members:
            for group in member.param_groups:
                group["lr"] = _as_f32(group["initial_lr"] * (1.0 if id(member) in constant else factor))


def _as_f32(number: float) -> float:
    """Rounded as it would be in a tensor, so that graphed and eager steps have the same learning rate."""
    return float(np.float32(number))
