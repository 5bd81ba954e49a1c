"""What a training with injected noise says of itself: how well the method and the label ranking did.

The labels before the injection are the reference, right or wrong as they may be themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml.evaluation import measure
from ml.method import ENSEMBLE

if TYPE_CHECKING:
    from torch import Tensor

    from ml.data.dataset import LabeledImages, Truth
    from ml.evaluation.ranking import LabelIssues
    from ml.training.spec import TrainingSpec
    from ml.training.trainer import Trainer

RANKING = ("auroc", "average_precision", "precision_at_count", "issue_precision", "issue_recall")


def reference(spec: TrainingSpec, images: LabeledImages, truth: Truth) -> Tensor | None:
    """Int64 (N,) by which given labels are judged, -1 where unknown; None where nothing is known.

    The set's clean labels, or those before the noise was injected.
    """
    if truth.train_clean is not None:
        return truth.train_clean
    return None if spec.noise is None else images.labels


def outcome(training: Trainer, issues: LabelIssues | None, before: Tensor) -> dict[str, Any] | None:
    """The figures of a finished training; None where its spec injects no noise. What cannot be told is None.

    `before` int64 (N,) are the labels before the injection. `memorised` is the share of wrong labels, of those trained
    on, that the network answers after the last epoch; `held_out_accuracy` is that of its answers on images held out,
    against `before`.
    """
    noise = training.spec.noise
    if noise is None or not training.history:
        return None
    last = training.history[-1]
    memorised, held_out = last.memorised.get(ENSEMBLE), last.before_noise.get(ENSEMBLE)
    ranked = None if issues is None else measure.ranking_quality(issues, training.labels, before)
    return {
        "noise": noise.kind,
        "rate": noise.rate,
        "realised_rate": training.noise_rate,
        "estimated_rate": None if issues is None else issues.noise_rate,
        **{name: None if ranked is None else ranked[name] for name in RANKING},
        "memorised": memorised and memorised.accuracy,
        "held_out_accuracy": held_out and held_out.accuracy,
    }
