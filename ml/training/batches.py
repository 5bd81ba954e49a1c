"""What a training shows its method: the batches of its steps, and every image when it scores or measures.

It cuts views and looks up given labels. When, in which order and to what end, it does not know.

Shapes: `N` images of the set, `M` of them trained on, `B` batch, `S` side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ml import method
from ml.data import image_store
from ml.data.image_store import ImageStore
from ml.evaluation import ranking
from ml.training.step_graphs import Inputs

STEPS, SCORING = "augmentation", "scoring"  # concerns that draw augmented views


class Batches:
    """The M images that a method trains on, by their positions among the labels it was built with."""

    def __init__(
        self,
        pixels: ImageStore,
        labels: Tensor,
        rows: Tensor,
        augmentation: str,
        generator: Callable[[str], torch.Generator],
        log: ranking.MarginTracker,
    ) -> None:
        """`rows` int64 (M,): which of `pixels` and given `labels` (N,) are trained on; `log` hears what is observed."""
        self.labels = labels[rows]  # int64 (M,)
        self._pixels, self._rows, self._log = pixels, rows, log
        self._augmentation, self._generator = augmentation, generator

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, phase: method.Phase, turn: int, shown: Inputs, *, epoch: int, progress: float) -> method.Batch:
        """What a step of the phase sees: `shown` are labelled and, in some turns, unlabelled positions, int64 (B,)."""
        index, *others = shown
        views, record_logits = self._views(phase, index)
        return method.Batch(
            views=views,
            labels=self.labels[index],
            index=index,
            record_logits=record_logits,
            epoch=epoch,
            progress=progress,
            pass_index=turn,
            unlabelled=self._unlabelled(phase, others[0]) if others else None,
            generator=self._generator,
        )

    def scored(self, views: int) -> Iterator[list[Tensor]]:
        """All M images in their order, batch by batch: `views` augmented ones of each, or the plain one, (B, 3, S, S).

        Batches without gradients are larger than those of steps.
        """
        for rows in torch.split(self._rows, self.eval_batch_size()):
            yield [self._augmented(rows, SCORING, "weak") for _ in range(views)] or [self._pixels.unaugmented(rows)]

    def unaugmented(self, count: int) -> Tensor:
        """The first `count` images as they are: (count, 3, S, S)."""
        return self._pixels.unaugmented(self._rows[:count])

    def eval_batch_size(self) -> int:
        """How many images are shown at once where there are no gradients."""
        return self._pixels.eval_batch_size()

    def sample(self, count: int) -> Tensor:
        """Up to `count` evenly spread images as they are stored: uint8 (count, S, S, 3) on the CPU."""
        spread = image_store.evenly(len(self), count).to(self._rows.device)
        return self._pixels.raw(self._rows[spread]).cpu().contiguous()

    def _unlabelled(self, phase: method.Phase, index: Tensor) -> method.Unlabelled:
        views, record_logits = self._views(phase, index)
        return method.Unlabelled(views, index, record_logits)

    def _views(self, phase: method.Phase, index: Tensor) -> tuple[tuple[Tensor, ...], Callable[[Tensor], None]]:
        """Of each position, and who hears what logits say of them."""
        rows = self._rows[index]
        views = tuple(self._augmented(rows, STEPS, kind) for kind in phase.views)
        return views, lambda logits: self._log.record_logits(rows, logits)

    def _augmented(self, rows: Tensor, concern: str, kind: method.View) -> Tensor:
        return self._pixels.augmented(rows, self._augmentation, self._generator(concern), strongly=kind == "strong")
