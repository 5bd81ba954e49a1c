"""Self-test: how well the method and the label ranking of a training with injected noise did.

The labels before the injection are the reference, although some of them may be wrong themselves.
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


def reference_labels(spec: TrainingSpec, images: LabeledImages, truth: Truth) -> Tensor | None:
    """The labels by which given labels are judged: the clean ones, or those before noise was injected.

    Returns:
        int64 (N,), -1 where unknown; None if there are no clean labels and the spec injects no noise.
    """
    if truth.train_clean is not None:
        return truth.train_clean
    return None if spec.noise is None else images.labels


def outcome(training: Trainer, issues: LabelIssues | None, before: Tensor) -> dict[str, Any] | None:
    """The numbers of a self-test.

    Args:
        training: A finished training.
        issues: Its ranking of the given labels.
        before: Labels int64 (N,) before the injection.

    Returns:
        `noise`, its kind; `rate`, `realised_rate` and `estimated_rate`; the measures `RANKING` of the ranking;
        `memorised`, the share of the wrong labels trained on that are predicted after the last epoch; and
        `held_out_accuracy`, the accuracy on held-out images against `before`. All shares are in [0, 1], None where
        they cannot be measured. None if the spec injects no noise or no epoch has ended.
    """
    noise = training.spec.noise
    if noise is None or not training.history:
        return None
    last = training.history[-1]
    memorised, held_out = last.memorised.get(ENSEMBLE), last.before_noise.get(ENSEMBLE)
    quality = None if issues is None else measure.ranking_quality(issues, training.labels, before)
    return {
        "noise": noise.kind,
        "rate": noise.rate,
        "realised_rate": training.noise_rate,
        "estimated_rate": None if issues is None else issues.noise_rate,
        **{name: None if quality is None else quality[name] for name in RANKING},
        "memorised": memorised and memorised.accuracy,
        "held_out_accuracy": held_out and held_out.accuracy,
    }
