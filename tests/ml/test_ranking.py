"""The ranking of labels against planted errors, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ml.evaluation import measure, ranking
from ml.evaluation.ranking import MarginTracker

CLASSES, COUNT = 4, 400


def planted(
    rate: float = 0.25, boldness: float = 0.0, epochs: int = 5
) -> tuple[MarginTracker, torch.Tensor, torch.Tensor]:
    """A log of logits that know the clean class, given labels of which `rate` are wrong, and the clean ones.

    `boldness` is added to the logit of class 0, whatever the image.
    """
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    given = clean.clone()
    wrong = torch.randperm(COUNT, generator=generator)[: int(rate * COUNT)]
    given[wrong] = (clean[wrong] + 1) % CLASSES
    log = MarginTracker(given, CLASSES)
    for _ in range(epochs):
        logits = 4.0 * one_hot(clean) + torch.randn(COUNT, CLASSES, generator=generator)
        logits[:, 0] += boldness
        said(log, logits, torch.randperm(COUNT, generator=generator))
    return log, given, clean


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float()


def said(log: MarginTracker, logits: torch.Tensor, order: torch.Tensor) -> None:
    """An epoch in which these logits were heard, in batches."""
    for rows in torch.split(order, 64):
        log.record_logits(rows, logits[rows])
    log.end_epoch()


def ranked(given: torch.Tensor, log: MarginTracker, held_out: torch.Tensor | None = None) -> ranking.LabelIssues:
    issues = ranking.label_issues(given, log, held_out)
    assert issues is not None
    return issues


def test_planted_errors_are_found() -> None:
    log, given, clean = planted()
    issues = ranked(given, log)
    quality = measure.ranking_quality(issues, given, clean)
    assert quality is not None

    assert quality["auroc"] > 0.99
    assert quality["precision_at_count"] > 0.95
    assert quality["issue_precision"] > 0.95
    assert issues.noise_rate == pytest.approx(0.25, abs=0.03)
    assert (issues.predicted_label == clean.numpy()).mean() > 0.97
    expected = 0.75 * np.eye(CLASSES) + 0.25 * np.roll(np.eye(CLASSES), 1, axis=1)
    assert np.abs(issues.transition - expected).max() < 0.08


def test_clean_labels_raise_no_alarm() -> None:
    log, given, _ = planted(rate=0.0)
    issues = ranked(given, log)

    assert issues.noise_rate < 0.02
    assert issues.is_label_issue.sum() < 8


def test_a_label_that_no_epoch_has_seen_is_neither_suspicious_nor_trusted() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.arange(COUNT) % CLASSES
    log = MarginTracker(given, CLASSES)
    for _ in range(5):
        order = torch.randperm(COUNT - 20, generator=generator)
        said(
            log,
            4.0 * one_hot((given + (given == 1)) % CLASSES) + torch.randn(COUNT, CLASSES, generator=generator),
            order,
        )
    issues = ranked(given, log)

    unseen = slice(COUNT - 20, None)
    assert (issues.predicted_label[unseen] == given[unseen].numpy()).all()
    assert not issues.is_label_issue[unseen].any()
    assert issues.label_score[unseen] == pytest.approx(np.median(issues.label_score))


def test_an_issue_is_never_a_label_that_the_prediction_confirms() -> None:
    log, given, _ = planted(rate=0.4)
    issues = ranked(given, log)

    assert issues.is_label_issue.any()
    assert not (issues.is_label_issue & (issues.predicted_label == given.numpy())).any()


def test_a_class_named_boldly_hides_no_wrong_labels() -> None:
    """A network that adds 3.5 to every logit of class 0: in its first epoch, without standards yet, that costs much."""

    def precision(boldness: float, epochs: int) -> float:
        log, given, clean = planted(boldness=boldness, epochs=epochs)
        return measure.average_precision(ranked(given, log).label_score, (given != clean).numpy())

    assert precision(3.5, epochs=1) < precision(0.0, epochs=1) - 0.02
    assert precision(3.5, epochs=5) > precision(0.0, epochs=5) - 0.01


def test_a_label_that_images_answered_alike_do_not_share_loses() -> None:
    """Whatever the network says of the label itself: it says the same of the whole group."""
    rng = np.random.default_rng(0)
    given = np.arange(300) % 3
    answers = np.eye(3)[given] + rng.uniform(0.2, 0.4, (300, 3))
    probabilities = answers / answers.sum(axis=1, keepdims=True)
    given[[0, 31]] = [2, 0]  # of the groups 0 and 1
    found = ranking.company(given, probabilities)

    assert set(np.argsort(found)[:2]) == {0, 31}
    assert found.mean() == pytest.approx(0.0, abs=1e-9)
    assert found.std() == pytest.approx(ranking.COMPANY)


@pytest.mark.parametrize(("count", "classes"), [(ranking.NEIGHBOURS, 3), (300, 1)])
def test_few_images_or_one_class_keep_no_company(count: int, classes: int) -> None:
    given = np.arange(count) % classes
    assert not ranking.company(given, np.full((count, 3), 1 / 3)).any()


def test_a_margin_by_hand() -> None:
    """Epochs weigh (1 * 1/2)^4 and (2 * 1)^4; the second is judged by the standards of the first, 4 and 1."""
    log = MarginTracker(torch.tensor([0, 1]), 2)
    said(log, torch.tensor([[4.0, 0.0], [2.0, 1.0]]), torch.arange(2))  # margins 4 and -1: one label of two is fitted
    said(log, torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.arange(2))  # margins 1 and -3, less or more 0.75 * (4 - 1)
    margins, _, weights = log.heard

    assert weights.tolist() == [0.0625 + 16] * 2
    assert margins.tolist() == [0.0625 * 4 + 16 * (1 - 2.25), 0.0625 * -1 + 16 * (-3 + 2.25)]


def test_the_order_of_images_in_an_epoch_means_nothing() -> None:
    given = torch.arange(COUNT) % CLASSES
    epochs = torch.randn(2, COUNT, CLASSES, generator=torch.Generator().manual_seed(2))
    forward, backward = MarginTracker(given, CLASSES), MarginTracker(given, CLASSES)
    for logits in epochs:
        said(forward, logits, torch.arange(COUNT))
        said(backward, logits, torch.arange(COUNT).flip(0))

    np.testing.assert_allclose(ranked(given, forward).label_score, ranked(given, backward).label_score, rtol=1e-5)


def test_held_out_rows_are_put_on_the_scale_of_the_others() -> None:
    """Their margins are lower and wider; the ranking must not call them all suspicious."""
    held_out = torch.arange(0, COUNT, 10)
    margins = np.random.default_rng(0).normal(2.0, 1.0, COUNT)
    seen = margins.copy()
    seen[held_out] = 3 * seen[held_out] - 9
    aligned = ranking.aligned(seen, held_out.numpy())

    assert np.array_equal(np.delete(aligned, held_out), np.delete(margins, held_out))
    assert np.median(aligned[held_out]) == pytest.approx(np.median(np.delete(margins, held_out)))
    assert np.abs(aligned - margins)[held_out].max() < 1
    level = np.array([1.0, 1.0, 1.0, 5.0])
    assert ranking.aligned(level, np.array([3])).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_epochs_that_have_memorised_the_labels_hardly_count() -> None:
    """Forty that fit every label, right or wrong, with margins that say nothing, behind five that knew the truth."""
    log, given, clean = planted()
    before = ranked(given, log)
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        said(log, 30.0 * one_hot(given) + 5 * torch.randn(COUNT, CLASSES, generator=generator), torch.arange(COUNT))
    after, wrong = ranked(given, log), (given != clean).numpy()

    assert log.epochs == 45
    assert measure.average_precision(after.label_score, wrong) > 0.95
    assert after.noise_rate > 0.9 * before.noise_rate


def test_a_label_that_was_never_heard_is_neither_suspicious_nor_trusted() -> None:
    log = MarginTracker(torch.tensor([0, 1, 1]), 2)
    said(log, torch.tensor([[3.0, 0.0], [3.0, 0.0], [9.0, 9.0]]), torch.arange(2))
    issues = ranked(torch.tensor([0, 1, 1]), log)

    assert issues.label_score[2] == 0.5
    assert issues.label_score[1] < 0.5 < issues.label_score[0]
    assert not issues.is_label_issue[2]


def test_a_log_restored_is_the_log() -> None:
    log, given, _ = planted()
    log.record_logits(torch.arange(10), torch.randn(10, CLASSES))
    other = MarginTracker(given, CLASSES)
    other.restore(*log.state())
    for each in (log, other):
        each.record_logits(torch.arange(10, 30), torch.ones(20, CLASSES))
        each.end_epoch()
        said(each, torch.ones(COUNT, CLASSES), torch.arange(COUNT))
    one, two = ranked(given, log), ranked(given, other)

    assert np.array_equal(one.label_score, two.label_score)
    assert one.noise_rate == two.noise_rate
    assert np.array_equal(one.transition, two.transition)


def test_a_log_without_epochs_ranks_nothing() -> None:
    assert ranking.label_issues(torch.zeros(3, dtype=torch.int64), MarginTracker(torch.zeros(3).long(), 2)) is None


def test_contradictions_by_hand() -> None:
    """Row 1 is given 0 and likely 1 with probability 0.75; class 2 has no image and is not likely."""
    given = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.875, 0.125, 0], [0.25, 0.75, 0], [0.125, 0.875, 0], [0.125, 0.875, 0]])
    counts = ranking.contradictions(given, probabilities)

    assert counts.tolist() == [[1.25, 0.75, 0], [0, 2, 0], [0, 0, 0]]
    transition = ranking.transition_matrix(counts)
    assert transition.tolist() == [[1, 0, 0], [pytest.approx(0.75 / 2.75), pytest.approx(2 / 2.75), 0], [0, 0, 1]]
