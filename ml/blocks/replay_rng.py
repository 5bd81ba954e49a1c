"""Two hosts, one stream of random draws: whatever the first draws, the second draws again.

So the two halves of a pair mix, select and score alike, and a generator advances as if there were one host. Knows no
method: it watches which generators are asked for, and rewinds them in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ml.method import TrainContext

T = TypeVar("T")
Generators = Callable[[str], torch.Generator]

SCORING = "scoring"  # the concern by which `TrainContext.score` draws its views


def run_with_same_draws(
    generators: Generators, first: Callable[[Generators], T], second: Callable[[Generators], T]
) -> tuple[T, T]:
    """Both results; every generator the first asked for is set back before the second begins."""
    before: dict[str, tuple[torch.Generator, Tensor]] = {}

    def watched(concern: str) -> torch.Generator:
        generator = generators(concern)
        before.setdefault(concern, (generator, generator.get_state()))
        return generator

    one = first(watched)
    for generator, state in before.values():
        generator.set_state(state)
    return one, second(generators)


def run_hooks_with_same_draws(
    lab: TrainContext, first: Callable[[TrainContext], None], second: Callable[[TrainContext], None]
) -> None:
    """The same for what hosts do when a phase or an epoch begins."""
    run_with_same_draws(lab.generator, lambda g: first(_WatchedLab(lab, g)), lambda g: second(_WatchedLab(lab, g)))


class _WatchedLab:
    """A `TrainContext` whose generators are watched."""

    def __init__(self, lab: TrainContext, generator: Generators) -> None:
        self._lab = lab
        self.generator = generator
        self.epoch = lab.epoch
        self.epochs = lab.epochs
        self.noisy_accuracies = lab.noisy_accuracies

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        if views:
            self.generator(SCORING)
        return self._lab.score(function, views=views)
