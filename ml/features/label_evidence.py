"""Which part of the picture each given label speaks of: DeNLL's gate of Eq. 6 as a mixture with a meaning.

A given label is explained by the object, by the background or by neither: P(y) = π0·q(y) + π1·b(y) + π2 / C, with q
predicted from the object and b from the background alone, both out of sample. EM estimates the shares π; the posterior
of the first term is the evidence that the label speaks of the object, by which samples are weighed or drawn.

Shapes: `n` images, `C` classes; probabilities (n, C), given labels int64 (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_SHARES = (0.8, 0.1, 0.1)
STEPS = 200
TOLERANCE = 1e-6  # on the shares, between two steps
TINY = 1e-12


@dataclass(frozen=True)
class LabelEvidence:
    """What each label speaks of.

    Attributes:
        object_weight: Posterior probability that the label speaks of the object, f32 (n,) in [0, 1].
        shares: π of object, background and neither; they sum to 1.
    """

    object_weight: Tensor
    shares: tuple[float, float, float]


def estimate(object_probabilities: Tensor, background: Tensor | None, labels: Tensor) -> LabelEvidence:
    """EM from the shares .8, .1 and .1, in f64.

    Args:
        object_probabilities: q, out-of-sample probabilities of the *clean* class, (n, C).
        background: b, out-of-sample probabilities of the given label from the background alone, (n, C); None leaves
            the term out, as it should be where labels do not follow the background (`ml.features.answer_rule`):
            backgrounds predict true labels too.
        labels: given labels int64 (n,).
    """
    classes = object_probabilities.shape[1]
    by_object = object_probabilities.double().gather(1, labels[:, None])[:, 0]
    by_background = (
        torch.zeros_like(by_object) if background is None else background.double().gather(1, labels[:, None])[:, 0]
    )
    likelihoods = torch.stack([by_object, by_background, torch.full_like(by_object, 1 / classes)])  # (3, n)
    shares = likelihoods.new_tensor(FIRST_SHARES)
    if background is None:
        shares = shares * shares.new_tensor([1.0, 0.0, 1.0])
        shares = shares / shares.sum()

    posterior = _posterior(likelihoods, shares)
    for _ in range(STEPS):
        moved = posterior.mean(dim=1)
        converged = bool((moved - shares).abs().max() < TOLERANCE)
        shares, posterior = moved, _posterior(likelihoods, moved)
        if converged:
            break
    first, second, third = shares.tolist()
    return LabelEvidence(posterior[0].float(), (first, second, third))


def _posterior(likelihoods: Tensor, shares: Tensor) -> Tensor:
    joint = shares[:, None] * likelihoods
    return joint / joint.sum(dim=0).clamp_min(TINY)


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of the samples of an epoch: each is kept with its weight as probability, int64 (m,), in order.

    Over epochs a sample counts as much as a weight on its loss would make it count, with any loss.

    Args:
        weights: of the samples, in [0, 1], (n,).
        generator: on their device.
    """
    uniform = torch.rand(len(weights), generator=generator, device=weights.device)
    return (uniform < weights).nonzero()[:, 0]
