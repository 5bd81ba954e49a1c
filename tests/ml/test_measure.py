"""Measures against values worked out by hand, and the ranking of labels against planted errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ml import measure
from ml.measure import LabelLog

CLASSES, COUNT = 4, 400


def planted(rate: float = 0.25, epochs: int = 5) -> tuple[LabelLog, torch.Tensor, torch.Tensor]:
    """A log of logits that know the clean class, given labels of which `rate` are wrong, and the clean ones."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    given = clean.clone()
    wrong = torch.randperm(COUNT, generator=generator)[: int(rate * COUNT)]
    given[wrong] = (clean[wrong] + 1) % CLASSES
    log = LabelLog(given, CLASSES)
    for _ in range(epochs):
        logits = 4.0 * torch.nn.functional.one_hot(clean, CLASSES) + torch.randn(COUNT, CLASSES, generator=generator)
        for rows in torch.split(torch.randperm(COUNT, generator=generator), 64):
            log.observe(rows, logits[rows])
        log.end_epoch(0.5)
    return log, given, clean


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


def test_planted_errors_are_found() -> None:
    log, given, clean = planted()
    issues = measure.label_issues(given, log)
    assert issues is not None
    quality = measure.ranking_quality(issues, given, clean)
    assert quality is not None

    assert quality["auroc"] > 0.99
    assert quality["precision_at_count"] > 0.95
    assert issues.noise_rate == pytest.approx(0.25, abs=0.03)
    assert (issues.predicted_label == clean.numpy()).mean() > 0.97
    expected = 0.75 * np.eye(CLASSES) + 0.25 * np.roll(np.eye(CLASSES), 1, axis=1)
    assert np.abs(issues.transition - expected).max() < 0.12


def test_clean_labels_raise_no_alarm() -> None:
    log, given, _ = planted(rate=0.0)
    issues = measure.label_issues(given, log)
    assert issues is not None

    assert issues.noise_rate < 0.02
    assert issues.is_label_issue.sum() < 8


def test_an_issue_is_never_a_label_that_the_prediction_confirms() -> None:
    log, given, _ = planted(rate=0.4)
    issues = measure.label_issues(given, log)
    assert issues is not None

    assert issues.is_label_issue.any()
    assert not (issues.is_label_issue & (issues.predicted_label == given.numpy())).any()


def test_held_out_rows_are_put_on_the_scale_of_the_others() -> None:
    """Their margins are lower by a constant; the ranking must not call them all suspicious."""
    log, given, clean = planted()
    held_out = torch.arange(0, COUNT, 10)
    for margins in log.margins:
        margins[held_out] -= 5
    issues = measure.label_issues(given, log, held_out)
    assert issues is not None
    score = issues.label_score[held_out.numpy()]

    assert measure.auroc(issues.label_score, (given != clean).numpy()) > 0.99
    assert np.median(score[(given == clean)[held_out].numpy()]) > 0.9


def test_margins_after_the_best_epoch_are_not_used() -> None:
    log, given, _ = planted()
    before = measure.label_issues(given, log)
    assert before is not None
    memorised = 20.0 * torch.nn.functional.one_hot(given, CLASSES).float()
    for _ in range(20):
        log.observe(torch.arange(COUNT), memorised)
        log.end_epoch(0.3)
    after = measure.label_issues(given, log)
    assert after is not None

    assert np.array_equal(after.label_score, before.label_score)
    assert after.noise_rate == before.noise_rate


def test_a_log_restored_is_the_log() -> None:
    log, given, _ = planted()
    log.observe(torch.arange(10), torch.randn(10, CLASSES))
    other = LabelLog(given, CLASSES)
    other.restore(*log.state())
    for each in (log, other):
        each.observe(torch.arange(10, 30), torch.ones(20, CLASSES))
        each.end_epoch(0.9)
    one, two = measure.label_issues(given, log), measure.label_issues(given, other)
    assert one is not None
    assert two is not None

    assert np.array_equal(one.label_score, two.label_score)
    assert one.noise_rate == two.noise_rate


def test_a_log_without_epochs_ranks_nothing() -> None:
    assert measure.label_issues(torch.zeros(3, dtype=torch.int64), LabelLog(torch.zeros(3).long(), 2)) is None


def test_a_class_without_images_breaks_nothing() -> None:
    """Means of the own class are 0.475, 0.9 and none: row 1 is confidently class 1 though class 0 is given."""
    given = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0], [0.05, 0.95, 0], [0.1, 0.9, 0], [0.1, 0.9, 0]])
    counts = measure.confident_counts(given, probabilities)

    assert counts.tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    transition = measure.transition_matrix(counts, np.bincount(given, minlength=3))
    assert transition.tolist() == [[1, 0, 0], [pytest.approx(1 / 3), pytest.approx(2 / 3), 0], [0, 0, 1]]


def test_ranking_figures_by_hand() -> None:
    """Suspicion order: wrong, right, wrong, right; one tie counts half."""
    score, wrong = np.array([0.1, 0.2, 0.3, 0.4]), np.array([True, False, True, False])

    assert measure.auroc(score, wrong) == 0.75
    assert measure.auroc(np.zeros(4), wrong) == 0.5
    assert measure.average_precision(score, wrong) == pytest.approx((1 + 2 / 3) / 2)
    assert measure.precision_at(score, wrong, 2) == 0.5
    assert math.isnan(measure.auroc(score, np.zeros(4, dtype=bool)))


def test_unknown_truth_is_left_out() -> None:
    log, given, clean = planted()
    issues = measure.label_issues(given, log)
    assert issues is not None
    clean[::2] = -1

    quality = measure.ranking_quality(issues, given, clean)
    assert quality is not None
    assert quality["noise_rate"] == pytest.approx(float((given != clean)[1::2].double().mean()))
    assert measure.ranking_quality(issues, given, torch.full_like(given, -1)) is None


def test_the_four_figures_of_a_training() -> None:
    found = measure.summary([0.2, 0.6, 0.6, 0.1], [0.3, 0.5, 0.9, 0.7])

    assert found == pytest.approx(
        {"last": 0.7, "best_noisy_val": 0.5, "best_noisy_val_epoch": 1, "best_test": 0.9, "mean_last10": 0.6}
    )
