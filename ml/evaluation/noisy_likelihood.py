"""How well predictions of clean classes explain noisy labels, when it is known how labels were mistaken.

Accuracy by noisy labels cannot tell a model that knows the clean classes from one that has learned which class is
mistaken for which. The likelihood of the labels through the transition matrix can (Patrini et al., CVPR 2017).

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)  # of logits: the best is taken (temperature scaling)
LEAST = 1e-4  # probability: one image that contradicts T does not decide


def noisy_likelihood(logits: Tensor, labels: Tensor, transition: Tensor) -> float:
    """Mean log-likelihood of given labels under predictions, at the best scale of the logits.

    Predictions are taken as those of clean classes, which the transition matrix turns into given labels, or as those of
    given labels, whichever explains the labels better.

    Args:
        logits: (N, C), of images that were not trained on.
        labels: Given labels int64 (N,).
        transition: T (C, C): P(given label j | clean class i), rows sum to 1.

    Returns:
        At most 0; higher is better.
    """
    rows = torch.arange(len(labels), device=labels.device)
    best = -torch.inf
    for scale in SCALES:
        clean = (scale * logits.double()).softmax(dim=1)
        for probabilities in (clean, clean @ transition.double().to(clean.device)):
            best = max(best, float(probabilities[rows, labels].clamp_min(LEAST).log().mean()))
    return float(best)
