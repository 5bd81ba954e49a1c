"""Measures a method during training: in evaluation mode, without gradients, on the evaluation splits.

Shapes: `B` batch, `C` classes, `M` images trained on, images (B, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ml.evaluation import measure, ranking
from ml.evaluation.measure import EvaluationSplit, Score
from ml.method import ENSEMBLE, Method
from ml.training.events import EVALUATION_SPLITS


class Evaluator:
    """Evaluates one method."""

    def __init__(
        self,
        method: Method,
        splits: Mapping[str, EvaluationSplit],
        margins: ranking.MarginTracker,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        """Bind the method to its splits.

        Args:
            method: The method that is trained.
            splits: One for each name of `events.EVALUATION_SPLITS`, maybe empty.
            margins: Takes the ensemble's logits of held-out images, so that their labels are ranked like all others.
            autocast: The precision of the training.
        """
        self._method, self._splits, self._margins, self._autocast = method, splits, margins, autocast

    @property
    def largest_split(self) -> int:
        """Images of the largest split."""
        return max(map(len, self._splits.values()))

    def scores(self) -> dict[str, dict[str, Score]]:
        """The scores of every head, by split and head; a split without images has none."""
        return {name: measure.scores(self._predictions(name)) for name in EVALUATION_SPLITS}

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (B, C) by head. Leaves the method in evaluation mode."""
        self._method.eval()
        with torch.no_grad(), self._autocast():
            return self._method.heads(images)

    def apply(self, function: Callable[[Tensor], Tensor], batches: Iterable[list[Tensor]]) -> Tensor:
        """`function` of every image, averaged over its views, in f32: (M, ...).

        Args:
            function: Takes images (B, 3, H, W), returns (B, ...). Usually a part of the method.
            batches: Lists of views, each (B, 3, H, W).
        """
        was_training = self._method.training
        self._method.eval()
        with torch.no_grad(), self._autocast():
            means = [torch.stack([function(images).float() for images in views]).mean(dim=0) for views in batches]
        self._method.train(was_training)
        return torch.cat(means)

    def _predictions(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for rows, images, labels in self._splits[split]:
            logits = self.heads(images)
            if split == "noisy_validation" and self._margins.has_recorded:
                self._margins.record_logits(rows, logits[ENSEMBLE])
            yield logits, labels
