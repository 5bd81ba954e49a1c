"""The real inference process with a model that costs nothing: it decodes, then says the same of every picture."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from app import logs
from app.settings import current
from app.storage import Storage
from ml.data.decoding import Geometry, Pixels
from ml.serving.predictor import Prediction
from tests.benchmarks._serving.model import CLASSES, SIDE
from worker.inference import server
from worker.inference.model_cache import ModelCache


class Free:
    classes = CLASSES
    image_size = SIDE

    def __init__(self) -> None:
        scores = np.full(len(CLASSES), 0.1, np.float32)
        self._answer = Prediction(scores, {"answer": scores}, None, None)

    def geometry(self, width: int, height: int) -> Geometry:
        return Geometry.of(width, height, SIDE, "squash")

    def predict_squares(self, squares: Sequence[Pixels]) -> list[Prediction]:
        return [self._answer] * len(squares)


class FreeShelf(ModelCache):
    def get(self, model_id: uuid.UUID) -> Free:  # type: ignore[override]
        return self._free

    def take_newest(self) -> None:
        self._free = Free()


if __name__ == "__main__":
    settings = current()
    logs.configure(settings.log_level, process="inference")
    shelf = FreeShelf(Storage(settings.data_dir), "cpu", 1, 1)
    shelf.take_newest()
    server.run_process(settings, shelf)
