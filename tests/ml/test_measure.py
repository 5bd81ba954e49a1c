"""Measures against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues


def test_scores_of_two_batches_are_those_of_one() -> None:
    """A worked example: mean cross-entropy 0.6751, one of two right."""
    logits, labels = torch.tensor([[2.0, 0, -1], [0, 1, 0.5]]), torch.tensor([0, 2])
    both = measure.scores([({"answer": logits}, labels)])["answer"]
    halves = measure.scores(({"answer": logits[i : i + 1]}, labels[i : i + 1]) for i in range(2))

    assert both.accuracy == 0.5
    assert both.loss == pytest.approx(0.6751, abs=1e-4)
    assert halves["answer"] == pytest.approx(both)
    assert both.calibration_error == pytest.approx((abs(1 - 0.8438) + 0.5065) / 2, abs=1e-4)


def test_calibrated_predictions_have_no_calibration_error() -> None:
    logits = torch.tensor([0.75, 0.25]).log().repeat(400, 1)
    labels = (torch.arange(400) % 4 == 0).long()

    assert measure.scores([({"a": logits}, labels)])["a"].calibration_error < 1e-6


def test_ranking_figures_by_hand() -> None:
    """Suspicion order: wrong, right, wrong, right; one tie counts half."""
    score, wrong = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])

    assert measure.auroc(score, wrong) == 0.75
    assert measure.auroc(np.zeros(4), wrong) == 0.5
    assert measure.average_precision(score, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert measure.precision_at(score, wrong, 2) == 0.5
    assert math.isnan(measure.auroc(score, np.zeros(4, dtype=bool)))


def test_ranking_quality_ignores_labels_whose_clean_label_is_unknown() -> None:
    """Of six labels the first and the last are unknown; of the others 1 and 3 are wrong, and 1 and 2 are flagged."""
    labels, clean = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([-1, 1, 1, 0, 0, -1])
    flagged = np.array([True, True, True, False, False, False])
    score, probs = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.0]), np.full((6, 2), 0.5)
    issues = LabelIssues(score, labels.numpy(), flagged, 0.5, np.eye(2), probs, probs)

    assert measure.ranking_quality(issues, labels, clean) == {
        "noise_rate": 0.5,
        "auroc": 0.75,
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
        "precision_at_count": 0.5,
        "issue_precision": 0.5,
        "issue_recall": 0.5,
    }
    assert measure.ranking_quality(issues, labels, torch.full_like(labels, -1)) is None


def test_the_four_figures_of_a_training() -> None:
    summary = measure.summary([0.2, 0.6, 0.6, 0.1], [0.3, 0.5, 0.9, 0.7])

    assert summary == pytest.approx(
        {"last": 0.7, "best_noisy_val": 0.5, "best_noisy_val_epoch": 2, "best_test": 0.9, "mean_last10": 0.6}
    )
