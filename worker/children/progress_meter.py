"""The progress of a training as `GET /jobs/{id}` shows it: fraction, loss, images a second, seconds left."""

from __future__ import annotations

import math
import time

from ml.training.events import Step
from ml.training.trainer import Trainer


class ProgressMeter:
    """Measures how fast an attempt trains.

    Args:
        trainer: The training, for its number of epochs and of training images, and for its losses.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._epochs = trainer.epochs
        self._images_per_epoch = len(trainer.batches)
        self._started = self._last_progress = time.monotonic()
        self._first_fraction: float | None = None  # of the training, at the first progress of this attempt
        self._images = 0.0  # since the last progress, each counted once an epoch, as in EpochReport
        self._speed: float | None = None
        self._losses = (0, 0.0, 0.0)  # epoch, and what the trainer said of it at the last progress

    def add(self, event: Step) -> None:
        """Count a step; to be called for every one."""
        self._images += self._images_per_epoch / event.steps

    def progress(self, event: Step) -> dict[str, object]:
        """The fields of a job's progress after this step; speed and loss are of the steps since the previous call."""
        now = time.monotonic()
        fraction = (event.epoch - 1 + (event.step + 1) / event.steps) / self._epochs
        if self._first_fraction is None:
            self._first_fraction, self._started = fraction, now
        if self._images and now > self._last_progress:
            self._speed = self._images / (now - self._last_progress)
        self._last_progress, self._images = now, 0.0
        gained = fraction - self._first_fraction
        eta = (now - self._started) * (1 - fraction) / gained if gained > 0 else None
        return {
            "phase": event.phase,
            "epoch": event.epoch,
            "epochs": self._epochs,
            "fraction": round(fraction, 4),
            "images_per_second": None if self._speed is None else round(self._speed, 1),
            "eta_seconds": None if eta is None else round(eta, 1),
            "train_loss": self._train_loss(event),
        }

    def _train_loss(self, event: Step) -> float | None:
        """Mean loss of the images of this epoch since the previous call; None where it is not finite."""
        epoch, loss_before, images_before = self._losses
        loss_sum, images = self._trainer.loss_so_far()
        if epoch != event.epoch:
            loss_before = images_before = 0.0
        self._losses = (event.epoch, loss_sum, images)
        if images <= images_before:
            return None
        mean = (loss_sum - loss_before) / (images - images_before)
        return float(f"{mean:.4g}") if math.isfinite(mean) else None
