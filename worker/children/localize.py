"""Where a model looks on every picture of a set: the Gaussian in original pixels, if it has a localization module.

Takes pictures as they were packed, so nothing is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from ml.evaluation.masks import Gaussian
from ml.formats.records import ImageRecord
from ml.serving.predictor import Prediction, Predictor

BATCH = 256


def answers(predictor: Predictor, squares: Tensor, still_wanted: Callable[[], None]) -> Iterator[Prediction]:
    """The answer for each square of uint8 (N, S, S, 3), in order."""
    for first in range(0, len(squares), BATCH):
        still_wanted()
        yield from predictor.predict_squares(list(squares[first : first + BATCH].numpy()))


def places(
    predictor: Predictor, squares: Tensor, images: Sequence[ImageRecord], still_wanted: Callable[[], None]
) -> list[Gaussian] | None:
    """One Gaussian an image; None for a model that does not localize."""
    if not predictor.localizes:
        return None
    found = []
    for image, answer in zip(images, answers(predictor, squares, still_wanted), strict=True):
        gaussian = answer.on(predictor.geometry(image.width, image.height))
        assert gaussian is not None
        found.append(gaussian)
    return found
