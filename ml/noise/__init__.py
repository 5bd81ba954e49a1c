"""Kinds of label noise for benchmarks and self-tests: a public file in this folder is a kind, its file name the name.

A kind's module exports `ABOUT` and `inject`. What several kinds share is in the folder `shared`. Listing the kinds
imports neither numpy nor torch, so that a training spec parses quickly.

Every kind is pure and seeded, and draws from the labels it receives, never from labels it has already changed. None
knows a data set beyond its class names and pixels.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NotRequired, Protocol, TypedDict, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ml.noise.shared.sampling import ImageRows, NoisyLabels, Parameters


class About(TypedDict):
    """What the catalog, the API and the page say of a kind."""

    title: str
    summary: str  # one sentence: which labels become wrong
    needs: Literal["rate", "matrix"]  # the one field that a request must hold beside `kind`
    classes: NotRequired[int]  # the only number of classes that the kind is for
    # of `matrix`: how far a row's sum may be from 1, because the numbers of requests are rounded
    row_sum_tolerance: NotRequired[float]


class NoiseModule(Protocol):
    """The names every kind exports."""

    ABOUT: About

    def inject(self, parameters: Parameters) -> NoisyLabels:
        """The noisy labels; UnusableData (noise_does_not_fit) where the data set's classes do not fit the kind."""
        ...


def kinds() -> tuple[str, ...]:
    """Every kind of noise, in alphabetical order."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg))


def load(kind: str) -> NoiseModule:
    """The module of one kind; ValueError if there is none."""
    if kind not in kinds():
        raise ValueError(f"no noise of kind {kind!r}; there are {', '.join(kinds())}")
    return cast("NoiseModule", importlib.import_module(f"{__name__}.{kind}"))


def inject(
    kind: str,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    rate: float | None = None,
    matrix: Sequence[Sequence[float]] | None = None,
    images: ImageRows,
    seed: int,
) -> NoisyLabels:
    """Noise of one kind on labels.

    Args:
        kind: As the training spec names it; see `kinds`.
        labels: int64 (N,), in [0, C).
        class_names: C names. Only the asymmetric kinds read more of them than their number.
        rate: Chance in [0, 1) that a label is drawn for noise, for the kinds whose `ABOUT` needs it; 0 changes none.
        matrix: (C, C), T[i][j] = P(given label j | clean label i); for the kind `transition`.
        images: uint8 (N, H, W, 3), read by the kinds that depend on the image.
        seed: In [0, 2**32).

    Returns:
        The noisy labels and the share of them that differ from `labels`.

    Raises:
        ValueError: There is no such kind, or the field that its `ABOUT` needs is missing.
        UnusableData: The data set's classes do not fit the kind (code noise_does_not_fit).
    """
    from ml.noise.shared import sampling

    module = load(kind)
    parameters = sampling.Parameters(labels, class_names, images, seed, rate, matrix)
    needed = module.ABOUT["needs"]
    if getattr(parameters, needed) is None:
        raise ValueError(f"{kind} noise needs a {needed}")
    # Some kinds draw a rate for each image around `rate`: at 0 these draws would still flip a few labels.
    if needed == "rate" and rate == 0.0:
        return sampling.counted(labels, labels.copy())
    return module.inject(parameters)
