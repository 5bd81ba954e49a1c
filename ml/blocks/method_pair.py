"""The same phase of two base methods that train two networks side by side, as one phase (DeNLL).

Both mix, select and score by the same random draws, and one order of images serves both.

Shapes: `M` images trained on, `C` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ml.blocks import pool_union, replay_rng, side_by_side
from ml.method import Batch, Optimizers, Pass, Phase, TrainContext


@dataclass(frozen=True)
class PhasePair:
    """One phase of both base methods, which are the same method on different networks.

    Attributes:
        first: Of the method that trains g1.
        second: Of the one that trains g2.
        apart: Neither loss reads what the other writes, so that on a GPU they may run side by side.
    """

    first: Phase
    second: Phase
    apart: bool = False

    def losses(self, batch: Batch, *, record_second: bool) -> Tensor:
        """The sum of both losses, a scalar with a graph, on the same random draws.

        Args:
            batch: of the step.
            record_second: labels are ranked by the second network's logits; otherwise by the first's.
        """
        unrecorded = batch.without_recording()
        one, two = replay_rng.run_with_same_draws(
            batch.generator,
            lambda generator: self.first.loss(replace(unrecorded if record_second else batch, generator=generator)),
            lambda generator: self.second.loss(replace(batch if record_second else unrecorded, generator=generator)),
            side_by_side.run if self.apart else side_by_side.one_after_the_other,
        )
        return one + two

    def before_step(self, batch: Batch) -> None:
        """Both hooks."""
        self.first.before_step(batch)
        self.second.before_step(batch)

    def after_step(self, batch: Batch) -> None:
        """Both hooks."""
        self.first.after_step(batch)
        self.second.after_step(batch)

    def enter(self, context: TrainContext) -> None:
        """Both hooks, with the same draws."""
        replay_rng.run_hooks_with_same_draws(context, self.first.enter, self.second.enter)

    def begin_epoch(self, context: TrainContext) -> tuple[Tensor | None, Tensor | None]:
        """Both hooks, with the same draws: both methods select and score alike.

        Returns:
            The logits (M, C) of all images that each method recorded, if it did. They do not rank labels yet.
        """
        return replay_rng.run_hooks_with_same_draws(context, self.first.begin_epoch, self.second.begin_epoch)

    @property
    def passes(self) -> Callable[[], Sequence[Pass]] | None:
        """The unions of both methods' pools; None where they show all images."""
        pools = [phase.passes for phase in (self.first, self.second) if phase.passes is not None]
        return (lambda: pool_union.unite_passes(*(passes() for passes in pools))) if pools else None

    def optimizers(self, shared: Callable[[], Sequence[torch.optim.Optimizer]]) -> Callable[[], Optimizers] | None:
        """Builds both methods' optimisers and those of `shared`; None if the phase keeps the ones of the phase before.

        Args:
            shared: builds the optimisers of what both networks share.
        """
        builders = [phase.optimizers for phase in (self.first, self.second) if phase.optimizers is not None]

        def build() -> Optimizers:
            one, two = (build_own() for build_own in builders)
            members = (*one.members, *two.members, *shared())
            return Optimizers(members, one.factor, (*one.constant_rate, *two.constant_rate))

        return build if builders else None
