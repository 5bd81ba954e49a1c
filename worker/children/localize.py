"""Predictions for every image of a data set, and where the model looked: its Gaussian in pixels of the original.

Images are taken as they were packed at ingest, so nothing is decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from ml.data.stored_rows import Rows
from ml.evaluation.masks import Gaussian
from ml.formats.records import ImageRecord
from ml.serving.predictor import Prediction, Predictor

BATCH = 256


def predict(predictor: Predictor, squares: Rows, check_cancelled: Callable[[], None]) -> Iterator[Prediction]:
    """Predict image by image, in order.

    Args:
        predictor: The model.
        squares: uint8 (N, S, S, 3), of the model's image size.
        check_cancelled: Called before each batch; may raise.
    """
    for rows in torch.split(torch.arange(len(squares)), BATCH) if len(squares) else ():
        check_cancelled()
        yield from predictor.predict_squares(list(squares[rows].numpy()))


def gaussians(
    predictor: Predictor, squares: Rows, images: Sequence[ImageRecord], check_cancelled: Callable[[], None]
) -> list[Gaussian] | None:
    """One Gaussian an image, in pixels of the original; None for a model that does not localize.

    Args:
        predictor: The model.
        squares: uint8 (N, S, S, 3), of the model's image size.
        images: The N index entries of the same images, with their original width and height.
        check_cancelled: Called before each batch; may raise.
    """
    if not predictor.localizes:
        return None
    result = []
    for image, prediction in zip(images, predict(predictor, squares, check_cancelled), strict=True):
        gaussian = prediction.on(predictor.geometry(image.width, image.height))
        assert gaussian is not None
        result.append(gaussian)
    return result
