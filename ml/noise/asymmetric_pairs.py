"""Asymmetric noise that swaps two classes of each block of five (released code of SOP, Liu et al. 2022)."""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState

from ml.noise import About
from ml.noise.shared.sampling import NoisyLabels, Parameters, class_blocks, flip_to

ABOUT: About = {
    "title": "Asymmetric, block swaps",
    "summary": "Two random classes of each block of five swap, so that 0.4 of the rate is wrong.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """The two classes of each swap flip to each other with probability `rate`; the other classes stay.

    With whole blocks and balanced classes the realised rate is 0.4 of `rate`.
    """
    classes, random = parameters.class_count, RandomState(parameters.seed)
    target = np.arange(classes)
    for block in class_blocks(classes):
        if len(block) > 1:
            one, other = random.choice(block, 2, replace=False)
            target[one], target[other] = other, one
    return flip_to(parameters.labels, target, parameters.known_rate, random)
