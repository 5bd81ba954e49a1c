"""What a training yields: plain, frozen, JSON-ready. It knows no tensor and no device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from ml.evaluation.measure import Score

# What an epoch is measured on: images held out, against their given and against their clean labels; the test set; and
# where the spec injects noise, the same images against the labels before it, and trained ones against the wrong labels.
EVALUATION_SPLITS = ("noisy_validation", "clean_validation", "test", "before_noise", "memorised")


@dataclass(frozen=True)
class Step:
    """One step was taken. It carries no loss, so that nobody waits for the device."""

    epoch: int
    phase: str
    step: int  # in this epoch, from 0
    steps: int  # of this epoch
    total_step: int  # taken so far in the whole training


@dataclass(frozen=True)
class EpochReport:
    """What one epoch yields. Scores are by head, "answer" among them; empty where there is nothing to measure by."""

    epoch: int  # from 0
    epochs: int
    phase: str
    step: int  # taken so far in the whole training
    train_loss: float
    noisy_validation: dict[str, Score]  # images held out, against the labels as they are given
    clean_validation: dict[str, Score]  # those of them whose clean label is known, against it: shown, never selected by
    test: dict[str, Score]  # the test set, against clean labels
    before_noise: dict[str, Score]  # images held out, against their labels before noise was injected
    memorised: dict[str, Score]  # trained images with a wrong label that was injected, against that label
    learning_rate: float
    seconds: float  # measuring included
    images_per_second: float  # of the training set, each counted once however often it is shown; while training
    finite: bool  # all of the above

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: what is not finite is null."""
        plain = dataclasses.asdict(self)
        for name in EVALUATION_SPLITS:
            scores: dict[str, Score] = getattr(self, name)
            plain[name] = {head: score._asdict() for head, score in scores.items()}
        found: dict[str, Any] = strict(plain)
        return found

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`, null being NaN."""
        known = dict(plain)
        for name in EVALUATION_SPLITS:
            known[name] = {
                head: Score(**{k: math.nan if v is None else v for k, v in score.items()})
                for head, score in plain.get(name, {}).items()
            }
        return cls(**known)


def speed(history: Sequence[EpochReport]) -> float | None:
    """Images per second while training, the median epoch's; None before the first has ended."""
    known = sorted(report.images_per_second for report in history)
    return known[len(known) // 2] if known else None


def strict(value: Any) -> Any:  # any JSON value
    """The same with null for every number that is not finite: JSON has none of those."""
    if isinstance(value, dict):
        return {name: strict(each) for name, each in value.items()}
    if isinstance(value, list):
        return [strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
