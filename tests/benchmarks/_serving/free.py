"""The real inference process with a model that costs nothing: it decodes, then answers every picture alike."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from app import logs
from app.settings import current
from app.storage import Storage
from ml.data.decoding import Geometry, ImageArray
from ml.serving.predictor import Prediction, Predictor
from tests.benchmarks._serving.model import CLASSES, SIDE
from worker.inference import server
from worker.inference.model_cache import ModelCache


class FreeModel(Predictor):
    """A model that gives every picture the same constant probabilities, on the CPU, without a network."""

    def __init__(self) -> None:
        scores = np.full(len(CLASSES), 0.1, np.float32)
        self.classes = CLASSES
        self.image_size = SIDE
        self._prediction = Prediction(scores, {"answer": scores}, None, None)

    def geometry(self, width: int, height: int) -> Geometry:
        return Geometry(width, height, SIDE, "squash")

    def predict_squares(self, squares: Sequence[ImageArray], *, maps: bool = False) -> list[Prediction]:
        return [self._prediction] * len(squares)


class FreeModelCache(ModelCache):
    """Answers for every id with the free model."""

    def get(self, model_id: uuid.UUID) -> Predictor:
        return self._free

    def load_newest(self) -> None:
        self._free = FreeModel()


if __name__ == "__main__":
    settings = current()
    logs.configure(settings.log_level, process="inference")
    server.run_process(settings, lambda: FreeModelCache(Storage(settings.data_dir), "cpu", 1, 1))
