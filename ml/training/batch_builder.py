"""Builds what a method sees of the data: the batches of its steps, and all training images when it asks for them.

It makes normalised views of the images and looks up their given labels. Which images, and when, the trainer decides.

Shapes: `N` images of the set, `M` of them trained on, `B` batch, `S` side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ml.blocks import mixup
from ml.data import image_store
from ml.data.augmentation import Augmentation
from ml.data.input_store import InputStore, eval_batches
from ml.evaluation import ranking
from ml.method import Batch, Mixture, Phase, Unlabelled, View
from ml.training.step_graphs import Positions

# concerns of generators: augmented views of steps and of scoring; shares and partners of mixed images
STEPS, SCORING, MIXTURES = "augmentation", "scoring", "mixup"


class BatchBuilder:
    """The M images that a method trains on. A position, 0 to M - 1, is how the method knows an image."""

    def __init__(
        self,
        images: InputStore,
        labels: Tensor,
        rows: Tensor,
        augmentation: Augmentation,
        generator: Callable[[str], torch.Generator],
        margins: ranking.MarginTracker,
        mixup: float = 0.0,
    ) -> None:
        """Bind images, labels and randomness.

        Args:
            images: All N images of the set.
            labels: Given labels, int64 (N,).
            rows: The images to train on, int64 (M,): the row in `images` of each position.
            augmentation: What a random view of an image is.
            generator: The generator of a concern, on the images' device.
            margins: Takes the logits that a method records of its batches.
            mixup: As `TrainingSpec.mixup`.
        """
        self.labels = labels[rows]  # int64 (M,)
        self._images, self._rows, self._margins = images, rows, margins
        self._augmentation, self._generator, self._mixup = augmentation, generator, mixup

    def __len__(self) -> int:
        """M."""
        return len(self._rows)

    def build(self, phase: Phase, pass_index: int, positions: Positions, *, epoch: int, progress: float) -> Batch:
        """The batch of one step.

        Args:
            phase: Says which views of every image are needed.
            pass_index: The pass of the phase that this step belongs to.
            positions: int64 (B,) of the labelled images and, where the pass has any, int64 (B',) of the unlabelled.
            epoch: Of the whole training, from 0.
            progress: Of the whole training, in [0, 1).
        """
        labelled, *unlabelled = positions
        views, record_logits = self._views(phase.views, labelled)
        mixture = self._draw_mixture(labelled) if self._mixup else None
        if mixture is not None:
            views = tuple(mixup.mix(view, mixture.share, mixture.partner) for view in views)
        return Batch(
            views=views,
            labels=self.labels[labelled],
            index=labelled,
            record_logits=record_logits,
            epoch=epoch,
            progress=progress,
            pass_index=pass_index,
            unlabelled=self._unlabelled(phase.views, unlabelled[0]) if unlabelled else None,
            generator=self._generator,
            mixture=mixture,
        )

    def read_ahead(self, positions: Iterable[Tensor]) -> None:
        """Say what will be built next.

        Args:
            positions: int64 (B,) on the CPU, in the order in which the images are shown: of each step the labelled
                ones, then the unlabelled. Not consumed where the images are in memory.
        """

        def rows_of_steps() -> Iterator[Tensor]:
            rows = self._rows.cpu()
            yield from (rows[part] for part in positions)

        self._images.read_ahead(rows_of_steps())

    def all_images(self, views: int) -> Iterator[list[Tensor]]:
        """All M images by position, in batches for passes without gradients: a list of views (B, 3, S, S).

        Args:
            views: Number of augmented views of every image; 0 gives one view, the unaugmented image.
        """
        for rows in eval_batches(self._images, self._rows):
            yield [self._augmented(rows, SCORING, "weak") for _ in range(views)] or [self._images.unaugmented(rows)]

    def record_logits(self, logits: Tensor) -> None:
        """Rank the labels of all M images by logits (M, C), by position."""
        self._margins.record_logits(self._rows, logits)

    def unaugmented(self, count: int) -> Tensor:
        """The first `count` images, normalised: (count, 3, S, S)."""
        return self._images.unaugmented(self._rows[:count])

    def eval_batch_size(self) -> int:
        """Images of a batch in a pass without gradients."""
        return self._images.eval_batch_size()

    def sample(self, count: int) -> Tensor:
        """Up to `count` evenly spread images as they are stored: uint8 (count, S, S, 3) on the CPU."""
        spread = image_store.evenly(len(self), count).to(self._rows.device)
        return self._images.raw(self._rows[spread]).cpu().contiguous()

    def _draw_mixture(self, positions: Tensor) -> Mixture:
        """One share for the whole batch, and a partner for each position int64 (B,)."""
        return Mixture(*mixup.draw_mixing(self._mixup, positions, self._generator(MIXTURES), folded=True))

    def _unlabelled(self, kinds: tuple[View, ...], positions: Tensor) -> Unlabelled:
        views, record_logits = self._views(kinds, positions)
        return Unlabelled(views, positions, record_logits)

    def _views(self, kinds: tuple[View, ...], positions: Tensor) -> tuple[tuple[Tensor, ...], Callable[[Tensor], None]]:
        """The views of each position, and the function that records their logits."""
        rows = self._rows[positions]
        views = tuple(self._augmented(rows, STEPS, kind) for kind in kinds)
        return views, lambda logits: self._margins.record_logits(rows, logits)

    def _augmented(self, rows: Tensor, concern: str, kind: View) -> Tensor:
        return self._images.augmented(rows, self._augmentation, self._generator(concern), strongly=kind == "strong")
