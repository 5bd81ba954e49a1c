"""The events that a training yields: frozen values that become JSON, without tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ml.evaluation.measure import Score

# What every epoch is evaluated on; see the fields of EpochReport.
EVALUATION_SPLITS = ("noisy_validation", "clean_validation", "test", "before_noise", "memorised")


@dataclass(frozen=True)
class Step:
    """A step was taken. It has no loss, since reading one would wait for the device.

    Attributes:
        epoch: From 1.
        phase: Name of the phase.
        step: In this epoch, from 0.
        steps: Of this epoch.
        total_step: Steps taken so far in the whole training.
    """

    epoch: int
    phase: str
    step: int
    steps: int
    total_step: int


@dataclass(frozen=True)
class EpochReport:
    """An epoch has ended. The five evaluation splits have scores by head, and none if their labels are not known.

    Attributes:
        epoch: From 1.
        epochs: Of the whole training.
        phase: Name of the phase.
        step: Steps taken so far in the whole training.
        train_loss: Mean over the images of the epoch's steps; NaN of an epoch without steps.
        noisy_validation: Held-out images by their given labels.
        clean_validation: Those of them whose clean label is known, by it. Nothing is selected by these scores.
        test: The test set by its clean labels.
        before_noise: Held-out images by their labels before the spec's noise was injected.
        memorised: Images that are trained on with a wrong, injected label, by that label.
        learning_rate: Of the last step, of the first group of parameters; 0 without steps.
        seconds: Spent in the epoch, evaluation included.
        images_per_second: Images of the training set, each counted once, by the seconds without evaluation.
        finite: Whether all scores are finite.
        skipped_steps: Steps in which an optimiser changed nothing, because gradients overflowed in fp16.
    """

    epoch: int
    epochs: int
    phase: str
    step: int
    train_loss: float
    noisy_validation: dict[str, Score]
    clean_validation: dict[str, Score]
    test: dict[str, Score]
    before_noise: dict[str, Score]
    memorised: dict[str, Score]
    learning_rate: float
    seconds: float
    images_per_second: float
    finite: bool
    skipped_steps: int = 0

    def to_json(self) -> dict[str, Any]:
        """As strict JSON, with null for numbers that are not finite."""
        fields = dataclasses.asdict(self)
        for name in EVALUATION_SPLITS:
            scores: dict[str, Score] = getattr(self, name)
            fields[name] = {head: score._asdict() for head, score in scores.items()}
        json: dict[str, Any] = to_strict_json(fields)
        return json

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        """The inverse of `to_json`, null being NaN."""
        fields = dict(json)
        for name in EVALUATION_SPLITS:
            fields[name] = {
                head: Score(**{k: math.nan if v is None else v for k, v in score.items()})
                for head, score in json.get(name, {}).items()
            }
        return cls(**fields)


def speed(history: Sequence[EpochReport]) -> float | None:
    """Images per second while training, of the median epoch; None before the first has ended."""
    speeds = sorted(report.images_per_second for report in history)
    return speeds[len(speeds) // 2] if speeds else None


def to_strict_json(value: Any) -> Any:
    """A JSON value with null for every number that is not finite, since JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: to_strict_json(member) for name, member in value.items()}
    if isinstance(value, list):
        return [to_strict_json(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
