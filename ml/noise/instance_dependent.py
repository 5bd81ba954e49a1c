"""Part-dependent noise (Xia et al. 2020): a random projection of the pixels for every clean class."""

from __future__ import annotations

from ml.noise import About
from ml.noise.shared.projection import flip_by_projection
from ml.noise.shared.sampling import NoisyLabels, Parameters

ABOUT: About = {
    "title": "Instance-dependent",
    "summary": "Each image has its own rate and its own wrong class.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each image flips at its own rate, around `rate`, to the class that its clean class's projection chooses."""
    return flip_by_projection(parameters, shared=False)
