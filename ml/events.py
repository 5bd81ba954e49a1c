"""What a training yields: plain, frozen, JSON-ready. It knows no tensor and no device."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from ml.measure import Score


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
    """What one epoch yields. `noisy_validation` is measured against given labels, `test` against clean ones."""

    epoch: int  # from 0
    epochs: int
    phase: str
    step: int  # taken so far in the whole training
    train_loss: float
    noisy_validation: dict[str, Score]  # by head, "answer" among them; empty without a held-out part
    test: dict[str, Score]  # by head; empty where no truth is known
    learning_rate: float
    seconds: float  # measuring included
    images_per_second: float  # while training
    finite: bool  # all of the above

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: what is not finite is null."""
        plain = {name: _strict(value) for name, value in dataclasses.asdict(self).items()}
        for name in ("noisy_validation", "test"):
            scores: dict[str, Score] = getattr(self, name)
            plain[name] = {head: {k: _strict(v) for k, v in s._asdict().items()} for head, s in scores.items()}
        return plain

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`, null being NaN."""
        known = dict(plain)
        for name in ("noisy_validation", "test"):
            known[name] = {
                head: Score(**{k: math.nan if v is None else v for k, v in score.items()})
                for head, score in plain[name].items()
            }
        return cls(**known)


def _strict(value: Any) -> Any:  # any JSON value
    return None if isinstance(value, float) and not math.isfinite(value) else value
