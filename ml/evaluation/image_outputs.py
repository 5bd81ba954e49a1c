"""What a trained method says of single images: predicted probabilities, and the embedding that they come from.

Shapes: `N` images, `B` batch, `C` classes, `D` features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.data.input_store import InputStore, eval_batches
from ml.method import ENSEMBLE
from ml.networks.chain import Chain

Heads = Callable[[Tensor], dict[str, Tensor]]
"""Images (B, ...) as the method sees them -> logits (B, C) by head."""


class ImageOutputs(NamedTuple):
    """What a method says of images, on the CPU."""

    probabilities: Tensor  # f32 (N, C), of the ensemble
    embeddings: Tensor  # f16 (N, D), what the classifier of the method's first network reads


def compute(
    method: nn.Module,
    heads: Heads,
    store: InputStore,
    on_batch: Callable[[], None] = lambda: None,
    rows: Tensor | None = None,
) -> ImageOutputs:
    """Probabilities and embeddings of images of a store, without augmentation.

    Args:
        method: The trained method, in whose networks embeddings are looked for.
        heads: Predicts by this method, in evaluation mode and without gradients.
        store: The images.
        on_batch: Called before every batch; may raise to stop.
        rows: int64 (N,), which images; None for all.
    """
    chosen = torch.arange(len(store)) if rows is None else rows
    probabilities, embeddings = [], []
    with _recording_features(method) as seen:
        for batch in eval_batches(store, chosen):
            on_batch()
            seen.clear()
            predicted = heads(store.unaugmented(batch))[ENSEMBLE].float().softmax(dim=1).cpu()
            probabilities.append(predicted)
            limits = torch.finfo(torch.float16)
            features = seen[0].float().cpu() if seen else predicted
            embeddings.append(features.flatten(1).clamp(limits.min, limits.max).half())
    return ImageOutputs(torch.cat(probabilities), torch.cat(embeddings))


@contextmanager
def _recording_features(method: nn.Module) -> Iterator[list[Tensor]]:
    """A list that gets what the classifiers of networks read, in the order in which they run."""
    seen: list[Tensor] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach())

    with ExitStack() as stack:
        for module in method.modules():
            if isinstance(module, Chain):
                stack.callback(module.classifier.register_forward_pre_hook(record).remove)
        yield seen
