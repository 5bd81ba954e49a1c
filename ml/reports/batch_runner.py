"""A trained method looking at pictures, batch by batch, and the masks by which a picture is taken apart.

Shapes: `N` pictures uint8 (N, S, S, 3), `B` batch, `C` classes; images (B, 3, S, S) normalised; masks (N, 1, S, S) in
[0, 1], large on the object. Results are f32 on the CPU. Knows no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.blocks import localization
from ml.data import image_store
from ml.method import Method


@dataclass(frozen=True)
class BatchRunner:
    """A method, put into eval mode for good, and how its pictures are normalised."""

    method: Method
    mean: Tensor  # (3,), of pixels in [0, 1]
    std: Tensor
    device: torch.device
    going_on: Callable[[], None] = lambda: None  # called for every batch

    def __post_init__(self) -> None:
        self.method.eval()  # looking must not move statistics, and a restored training is in train mode

    def images(self, pictures: Tensor) -> Tensor:
        """All of them, normalised, on the CPU: (N, 3, S, S)."""
        return torch.cat([shown.cpu() for shown in self._batches(pictures)]).contiguous()

    def each(
        self, images: Tensor, function: Callable[[Tensor], Tensor], changed: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """`function` of normalised images (N, 3, S, S), batch by batch without gradients.

        With `changed` of pictures made for the moment: it takes int64 rows (B,) and gives the images that stand for
        those rows.
        """
        size = max(2, image_store.PLAIN_PIXELS // images.shape[-1] ** 2)
        found = []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(images)), size):
                self.going_on()
                shown = images[rows] if changed is None else changed(rows)
                found.append(function(shown.to(self.device)).float().cpu())
        return torch.cat(found)

    def probabilities(self, images: Tensor, changed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Of the answer: (N, C)."""
        return self.each(images, lambda shown: self.method.logits(shown).float().softmax(dim=1), changed)

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the answer for int64 labels (N,): (N,)."""
        logs = self.each(images, lambda shown: self.method.logits(shown).float().log_softmax(dim=1))
        return -logs.gather(1, labels[:, None])[:, 0]

    def locates(self, images: Tensor) -> bool:
        """Whether the method has a localization module."""
        with torch.no_grad():
            return self.method.locate(images[:1].to(self.device)) is not None

    def masks(self, images: Tensor) -> Tensor:
        """The method's own (N, 1, S, S), or the paper's central square where it has no localization module."""
        return self.each(images, self._mask)

    def _mask(self, images: Tensor) -> Tensor:
        place = self.method.locate(images)
        if place is None:
            return localization.central_mask(images)
        return localization.gaussian_mask(place, images.shape[2], images.shape[3])

    def _batches(self, pictures: Tensor) -> Iterator[Tensor]:
        pixels = image_store.ImageStore(pictures, self.mean, self.std, device=self.device, padded_bytes=0)
        for rows in torch.split(torch.arange(len(pictures), device=self.device), pixels.eval_batch_size()):
            yield pixels.unaugmented(rows)
