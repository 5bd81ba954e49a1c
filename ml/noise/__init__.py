"""Known noise for benchmarks and self-tests: labels in, noisy labels and the realised rate out. Seeded and pure.

Every generator draws from the labels it was given, never from labels it has already changed. None knows a data set
beyond class names and pixels. This page says which kind is which; the kinds that depend on the class alone are in
`classwise`, the others have a module each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ml.noise import classwise, confounded, instance
from ml.noise.sampling import Labels, Noisy, of

__all__ = ("Noisy", "inject")


def inject(
    kind: str,
    labels: Labels,
    class_names: Sequence[str],
    *,
    rate: float | None = None,
    matrix: Sequence[Sequence[float]] | None = None,
    images: NDArray[np.uint8],
    seed: int,
) -> Noisy:
    """Noise of one kind as the training spec names it, on labels int64 (N,).

    `images` (N, H, W, 3) are read by the kinds that depend on them; `matrix` belongs to `transition`, which has no
    `rate`. UnusableData where the classes do not fit the kind.
    """
    classes = len(class_names)
    if kind == "transition":
        if matrix is None:
            raise ValueError("transition noise needs a matrix")
        return classwise.transition(labels, classes, matrix, seed)
    if rate is None:
        raise ValueError(f"{kind} noise needs a rate")
    if rate == 0.0:  # the spread of instance-dependent rates would flip some labels even so
        return of(labels, labels.copy())
    match kind:
        case "symmetric":
            return classwise.symmetric(labels, classes, rate, seed)
        case "symmetric_inclusive":
            return classwise.symmetric(labels, classes, rate, seed, inclusive=True)
        case "pairflip":
            return classwise.pairflip(labels, classes, rate, seed)
        case "asymmetric":
            return classwise.asymmetric(labels, class_names, rate, seed)
        case "asymmetric_circular":
            return classwise.circular(labels, classes, rate, seed)
        case "asymmetric_superclass":
            return classwise.superclass(labels, class_names, rate, seed)
        case "asymmetric_pairs":
            return classwise.pairs(labels, classes, rate, seed)
        case "instance_dependent":
            return instance.dependent(labels, classes, images, rate, seed)
        case "instance_dependent_shared":
            return instance.dependent(labels, classes, images, rate, seed, shared=True)
        case "confounded":
            return confounded.by_background(labels, classes, images, rate, seed)
    raise ValueError(f"no noise of kind {kind!r}")
