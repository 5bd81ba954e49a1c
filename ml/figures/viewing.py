"""A trained method looking at pictures, batch by batch, and the masks by which a picture is taken apart.

Shapes: `N` pictures uint8 (N, S, S, 3), `B` batch, `C` classes; images (B, 3, S, S) normalised; masks (N, 1, S, S) in
[0, 1], large on the object. Results are f32 on the CPU. Knows no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ml import loader
from ml.blocks import localization
from ml.phase import Method

MaskOrigin = Literal["exact", "localization", "centre"]


@dataclass(frozen=True)
class Viewer:
    """A method in eval mode, and how its pictures are normalised."""

    method: Method
    mean: Tensor  # (3,), of pixels in [0, 1]
    std: Tensor
    device: torch.device
    going_on: Callable[[], None] = lambda: None  # called for every batch

    def images(self, pictures: Tensor) -> Tensor:
        """All of them, normalised, on the CPU: (N, 3, S, S)."""
        return torch.cat([shown.cpu() for shown in self._batches(pictures)]).contiguous()

    def each(self, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """`function` of normalised images (N, 3, S, S), batch by batch without gradients."""
        was_training = self.method.training
        self.method.eval()
        rows = max(2, loader.PLAIN_PIXELS // images.shape[-1] ** 2)
        found = []
        with torch.no_grad():
            for part in torch.split(images, rows):
                self.going_on()
                found.append(function(part.to(self.device)).float().cpu())
        self.method.train(was_training)
        return torch.cat(found)

    def probabilities(self, images: Tensor) -> Tensor:
        """Of the answer: (N, C)."""
        return self.each(images, lambda shown: self.method.logits(shown).float().softmax(dim=1))

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the answer for int64 labels (N,): (N,)."""
        logs = self.each(images, lambda shown: self.method.logits(shown).float().log_softmax(dim=1))
        return -logs.gather(1, labels[:, None])[:, 0]

    def masks(self, images: Tensor) -> tuple[Tensor, MaskOrigin]:
        """The method's own (N, 1, S, S), or the paper's central square where it has no localization module."""
        own = self.method.locate(images[:1].to(self.device)) is not None
        return self.each(images, self._mask), "localization" if own else "centre"

    def _mask(self, images: Tensor) -> Tensor:
        place = self.method.locate(images)
        if place is None:
            return localization.central_mask(images)
        return localization.gaussian_mask(place, images.shape[2], images.shape[3])

    def _batches(self, pictures: Tensor) -> Iterator[Tensor]:
        pixels = loader.Pixels(pictures, self.mean, self.std, device=self.device, padded_bytes=0)
        for rows in torch.split(torch.arange(len(pictures), device=self.device), pixels.plain_rows()):
            yield pixels.plain(rows)


def spread(count: int, most: int) -> Tensor:
    """Up to `most` evenly spread rows of `count`, ascending: int64."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
