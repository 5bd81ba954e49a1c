"""Runs two functions on the same random draws: whatever the first draws, the second draws again.

So the two base methods of a pair mix, select and score alike, and every generator advances as if there were one method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ml.blocks import side_by_side
from ml.method import TrainContext

T = TypeVar("T")
Generators = Callable[[str], torch.Generator]  # concern -> its generator

SCORING = "scoring"  # the concern by which `TrainContext.score` draws its views


def run_with_same_draws(
    generators: Generators,
    first: Callable[[Generators], T],
    second: Callable[[Generators], T],
    run: Callable[[Callable[[], T], Callable[[], T]], tuple[T, T]] = side_by_side.one_after_the_other,
) -> tuple[T, T]:
    """Results of both functions; every generator that the first one used is reset before the second one runs.

    Args:
        generators: returns the generator of a concern.
        first: is called with a function like `generators` that notes which are used.
        second: is called with `generators`.
        run: calls both in their order, as `side_by_side.run` does.
    """
    states: dict[str, tuple[torch.Generator, Tensor]] = {}

    def recorded(concern: str) -> torch.Generator:
        generator = generators(concern)
        states.setdefault(concern, (generator, generator.get_state()))
        return generator

    def again() -> T:
        for generator, state in states.values():
            generator.set_state(state)
        return second(generators)

    return run(lambda: first(recorded), again)


def run_hooks_with_same_draws(
    context: TrainContext, first: Callable[[TrainContext], None], second: Callable[[TrainContext], None]
) -> tuple[Tensor | None, Tensor | None]:
    """`run_with_same_draws` for two hooks, `first` and `second`, that run when a phase or an epoch begins.

    Returns:
        The logits (M, C) that each of them recorded, if it did; they are not passed on to the context.
    """

    def run(hook: Callable[[TrainContext], None], generators: Generators) -> Tensor | None:
        recorded = _RecordedContext(context, generators)
        hook(recorded)
        return recorded.logits

    return run_with_same_draws(
        context.generator, lambda generators: run(first, generators), lambda generators: run(second, generators)
    )


class _RecordedContext:
    """A `TrainContext` with other generators, of which scoring by augmented views uses one, too. It keeps logits."""

    def __init__(self, context: TrainContext, generator: Generators) -> None:
        self._context = context
        self.generator = generator
        self.epoch = context.epoch
        self.epochs = context.epochs
        self.noisy_accuracies = context.noisy_accuracies
        self.rendered = context.rendered
        self.logits: Tensor | None = None

    def record_logits(self, logits: Tensor) -> None:
        self.logits = logits

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        if views:
            self.generator(SCORING)
        return self._context.score(function, views=views)
