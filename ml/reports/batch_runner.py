"""Runs a trained method over images batch by batch, without gradients.

Shapes: `N` images, `B` batch, `C` classes. Stored images are uint8 (N, S, S, 3), normalised ones f32 (N, 3, S, S),
masks f32 (N, 1, S, S) in [0, 1] with 1 on the object. Results are f32 on the CPU. No labels are known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ml.blocks import localization
from ml.data import image_store
from ml.method import Method

Rows = Tensor  # int64 (B,), positions among the images


@dataclass(frozen=True)
class BatchRunner:
    """A method and how its images are normalised. The method is put into eval mode and stays there."""

    method: Method
    mean: Tensor  # (3,), of pixels in [0, 1]
    std: Tensor  # (3,)
    device: torch.device
    on_batch: Callable[[], None] = lambda: None  # called before every batch; may raise to stop

    def __post_init__(self) -> None:
        self.method.eval()  # a restored training is in train mode, where forward passes change running statistics

    def normalize(self, images: Tensor) -> Tensor:
        """Stored images uint8 (N, S, S, 3) -> normalised (N, 3, S, S) on the CPU."""
        return torch.cat([batch.cpu() for batch in self._normalized_batches(images)]).contiguous()

    def map_batches(
        self,
        images: Tensor,
        function: Callable[[Tensor], Tensor],
        replace: Callable[[Rows], Tensor] | None = None,
    ) -> Tensor:
        """The results of `function` for all images.

        Args:
            images: Normalised (N, 3, S, S).
            function: Takes a batch (B, 3, S, S) on the device, returns (B, ...).
            replace: Makes the batch for these rows instead of `images[rows]`, so that changed images are never held
                all at once.

        Returns:
            f32 (N, ...), on the CPU.
        """
        size = max(2, image_store.EVAL_PIXELS // images.shape[-1] ** 2)
        results = []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(images)), size):
                self.on_batch()
                batch = images[rows] if replace is None else replace(rows)
                results.append(function(batch.to(self.device)).float().cpu())
        return torch.cat(results)

    def probabilities(self, images: Tensor, replace: Callable[[Rows], Tensor] | None = None) -> Tensor:
        """Predicted probabilities (N, C); arguments as in `map_batches`."""
        return self.map_batches(images, lambda batch: self.method.logits(batch).float().softmax(dim=1), replace)

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (N,) of the predictions for labels int64 (N,)."""
        log_probs = self.map_batches(images, lambda batch: self.method.logits(batch).float().log_softmax(dim=1))
        return -log_probs.gather(1, labels[:, None])[:, 0]

    def has_localization(self, images: Tensor) -> bool:
        """Whether the method has a localization module; runs the first of the images."""
        with torch.no_grad():
            return self.method.locate(images[:1].to(self.device)) is not None

    def masks(self, images: Tensor) -> Tensor:
        """Masks (N, 1, S, S): the method's own, or the paper's central square if it has no localization module."""
        return self.map_batches(images, self._masks_of_batch)

    def _masks_of_batch(self, batch: Tensor) -> Tensor:
        location = self.method.locate(batch)
        if location is None:
            return localization.central_mask(batch)
        return localization.gaussian_mask(location, batch.shape[2], batch.shape[3])

    def _normalized_batches(self, images: Tensor) -> Iterator[Tensor]:
        store = image_store.ImageStore(images, self.mean, self.std, device=self.device, padded_bytes=0)
        for rows in torch.split(torch.arange(len(images), device=self.device), store.eval_batch_size()):
            yield store.unaugmented(rows)
