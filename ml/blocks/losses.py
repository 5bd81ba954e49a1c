"""Loss terms on logits `(B, C)`, always computed in f32 whatever the network's precision. They know no network."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean H(Y, softmax(logits)) over the batch (methods.md 2.1): a scalar."""
    return functional.cross_entropy(logits.float(), labels)


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Mean of KL(p‖q) + KL(q‖p) over the batch, p and q the softmax of two logits (B, C): a scalar (JoCoR's term)."""
    p, q = functional.log_softmax(first.float(), dim=1), functional.log_softmax(second.float(), dim=1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1).mean()
