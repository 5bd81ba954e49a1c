"""Instance-dependent noise as the released code of CORES has it (Cheng et al. 2021): one projection for all classes."""

from __future__ import annotations

from ml.noise import About
from ml.noise.shared.projection import flip_by_projection
from ml.noise.shared.sampling import NoisyLabels, Parameters

ABOUT: About = {
    "title": "Instance-dependent, shared projection",
    "summary": "Each image has its own rate and its own wrong class, by one projection for all classes, as in the "
    "experiments of CORES.",
    "needs": "rate",
}


def inject(parameters: Parameters) -> NoisyLabels:
    """Each image flips at its own rate, around `rate`, to the class that the one projection chooses."""
    return flip_by_projection(parameters, shared=True)
