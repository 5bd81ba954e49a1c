"""Models in memory: the ones used last, each verified when it was taken from disk and warmed before it answers.

Used by one thread. Knows ids and files, no requests.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections import OrderedDict

import numpy as np
import torch

from app.storage import Storage
from ml.errors import Failure, ModelArchiveCorrupt
from ml.serving.predictor import Predictor

log = logging.getLogger(__name__)


class ModelCache:
    def __init__(self, files: Storage, device: str, places: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self._files = files
        self._places = places
        self._predictors: OrderedDict[uuid.UUID, Predictor] = OrderedDict()

    def get(self, model_id: uuid.UUID) -> Predictor:
        """The model, from memory or from disk; ModelArchiveCorrupt when its files are missing or damaged."""
        if model_id in self._predictors:
            self._predictors.move_to_end(model_id)
            return self._predictors[model_id]
        started = time.monotonic()
        folder = self._files.model(model_id)
        if not folder.is_dir():
            raise ModelArchiveCorrupt("the model's files are missing")
        predictor = Predictor.load(folder, device=self.device, precision="auto")
        while len(self._predictors) >= self._places:
            forgotten, _ = self._predictors.popitem(last=False)
            log.info("model %s leaves memory", forgotten)
        self._predictors[model_id] = predictor
        predictor.predict([np.zeros((8, 8, 3), dtype=np.uint8)])  # the first pass allocates and chooses kernels
        log.info("model %s loaded and warm in %.2f s", model_id, time.monotonic() - started)
        return predictor

    def take_newest(self) -> None:
        """Have the newest model at hand before anybody asks; what is wrong with it is said to whoever asks."""
        newest = self._newest()
        if newest is None or newest in self._predictors:
            return
        try:
            self.get(newest)
        except (Failure, OSError) as error:
            log.warning("the newest model, %s, cannot be loaded: %s", newest, error)

    def forget_deleted(self) -> None:
        for model_id in [m for m in self._predictors if not self._files.model(m).is_dir()]:
            del self._predictors[model_id]

    def _newest(self) -> uuid.UUID | None:
        found: list[tuple[float, uuid.UUID]] = []
        for folder in (self._files.root / "models").iterdir():
            try:
                found.append((folder.stat().st_mtime, uuid.UUID(folder.name)))
            except (ValueError, FileNotFoundError):
                continue  # not a model, or just deleted
        return max(found)[1] if found else None
