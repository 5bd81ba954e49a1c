"""A `TrainContext` without a training: what the hooks of phases are told of the images, fixed by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


class FixedContext:
    """The start of an epoch, in which `score` returns the same values whatever is scored.

    Attributes:
        views: As of the last call of `score`.
    """

    def __init__(
        self, scores: Tensor | None = None, *, epoch: int = 0, epochs: int = 40, accuracies: Sequence[float] = ()
    ) -> None:
        """Fix what the context knows.

        Args:
            scores: What `score` returns, (M, ...); None where nothing may be scored.
            epoch: That begins, from 0.
            epochs: Of the training.
            accuracies: On held-out images by given labels, of every epoch; those before `epoch` are known.
        """
        self.epoch, self.epochs, self.views = epoch, epochs, 0
        self._scores, self._accuracies = scores, accuracies

    def generator(self, concern: str) -> torch.Generator:
        return torch.Generator()

    def noisy_accuracies(self) -> Sequence[float]:
        return self._accuracies[: self.epoch]

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        if self._scores is None:
            raise LookupError("nothing to score")
        self.views = views
        return self._scores

    def rendered(self, kind: str) -> Iterator[Tensor]:
        raise LookupError(kind)

    def record_logits(self, logits: Tensor) -> None:
        pass
