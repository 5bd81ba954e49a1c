"""The most recently used models, in memory: each is verified when it is loaded, and warmed up before it is used."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import OrderedDict

import numpy as np
import torch

from app.errors import StorageUnavailable
from app.storage import Storage
from ml.errors import Failure, ModelArchiveCorrupt
from ml.serving.predictor import Predictor
from ml.training import devices

log = logging.getLogger(__name__)


class ModelCache:
    """A least-recently-used cache of models, for any number of threads; while one loads a model, the others wait.

    Args:
        files: The data folder, with the published models.
        device: What they run on.
        capacity: How many are in memory at a time.
        threads: CPU threads of all forward passes together.
        precision: Their arithmetic, as of `Predictor.load`.
        gpu_memory_fraction: Share of a GPU's memory that the process may take, in (0, 1].

    Attributes:
        fault: Why no model can be used on the device; None while it works.
    """

    def __init__(
        self,
        files: Storage,
        device: str,
        capacity: int,
        threads: int,
        precision: str = "auto",
        gpu_memory_fraction: float = 1.0,
    ) -> None:
        torch.set_num_threads(threads)
        self.device, self.threads = device, threads
        self._precision = precision
        self.fault: str | None = None
        try:
            devices.check_usable(device)
            devices.limit_memory(device, gpu_memory_fraction)
        except Failure as failure:
            self.fault = failure.detail
            log.error("no model can be used: %s", failure)  # noqa: TRY400 - the cause is the driver's, and in the text
        self._files = files
        self._capacity = capacity
        self._lock = threading.RLock()  # guards the models
        self._predictors: OrderedDict[uuid.UUID, Predictor] = OrderedDict()

    def get(self, model_id: uuid.UUID) -> Predictor:
        """The model, from memory or from where it is published.

        Raises:
            ModelArchiveCorrupt: Its files are missing or damaged.
            Failure: The object store cannot be reached (code `storage_unavailable`).
        """
        with self._lock:
            if model_id not in self._predictors:
                self._load(model_id)
            self._predictors.move_to_end(model_id)
            return self._predictors[model_id]

    def _load(self, model_id: uuid.UUID) -> None:
        started = time.monotonic()
        try:
            folder = self._files.fetch(self._files.model(model_id))
        except StorageUnavailable as error:
            raise Failure(error.detail, code=error.code) from error
        except FileNotFoundError:
            folder = self._files.model(model_id)
        if not folder.is_dir():
            raise ModelArchiveCorrupt("the model's files are missing")
        predictor = Predictor.load(folder, device=self.device, precision=self._precision).optimize()
        while len(self._predictors) >= self._capacity:
            evicted, _ = self._predictors.popitem(last=False)
            log.info("model %s is evicted", evicted)
        self._predictors[model_id] = predictor
        # Warm up: the first pass allocates memory and chooses kernels.
        predictor.predict([np.zeros((8, 8, 3), dtype=np.uint8)])
        log.info("model %s loaded and warmed up in %.2f s", model_id, time.monotonic() - started)

    def load_newest(self) -> None:
        """Load the newest model before the first request for it; errors are logged, and raised again by `get`."""
        newest = None if self.fault else self._newest()
        with self._lock:
            if newest is None or newest in self._predictors:
                return
            try:
                self.get(newest)
            except (Failure, OSError) as error:
                log.warning("the newest model, %s, cannot be loaded: %s", newest, error)

    def evict_deleted(self) -> None:
        """Evict models whose folder was deleted."""
        with self._lock:
            loaded = list(self._predictors)
        deleted = self._files.find_deleted_models(loaded)  # may ask an object store, while others predict
        with self._lock:
            for model_id in deleted:
                self._predictors.pop(model_id, None)

    def _newest(self) -> uuid.UUID | None:
        models = [(published, model_id) for model_id, published in self._files.models().items()]
        return max(models)[1] if models else None
