"""The ranking of labels against planted errors, and what it must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ml.evaluation import label_posterior, measure, ranking
from ml.evaluation.ranking import MarginTracker
from ml.method import NoiseEstimate

CLASSES, COUNT = 4, 400


def planted(rate: float = 0.25, bias: float = 0.0, epochs: int = 5) -> tuple[MarginTracker, torch.Tensor, torch.Tensor]:
    """A tracker of logits that know the clean class, given labels of which `rate` are wrong, and the clean ones.

    `bias` is added to the logit of class 0, whatever the image.
    """
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    labels = clean.clone()
    wrong = torch.randperm(COUNT, generator=generator)[: int(rate * COUNT)]
    labels[wrong] = (clean[wrong] + 1) % CLASSES
    tracker = MarginTracker(labels, CLASSES)
    for _ in range(epochs):
        logits = 4.0 * one_hot(clean) + torch.randn(COUNT, CLASSES, generator=generator)
        logits[:, 0] += bias
        record_epoch(tracker, logits, torch.randperm(COUNT, generator=generator))
    return tracker, labels, clean


def one_hot(labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float()


def record_epoch(tracker: MarginTracker, logits: torch.Tensor, order: torch.Tensor) -> None:
    """An epoch with these logits (N, C), recorded in batches in this order of rows."""
    for rows in torch.split(order, 64):
        tracker.record_logits(rows, logits[rows])
    tracker.end_epoch()


def ranked(labels: torch.Tensor, tracker: MarginTracker, held_out: torch.Tensor | None = None) -> ranking.LabelIssues:
    issues = ranking.label_issues(labels, tracker, held_out)
    assert issues is not None
    return issues


def test_planted_errors_are_found() -> None:
    tracker, labels, clean = planted()
    issues = ranked(labels, tracker)
    quality = measure.ranking_quality(issues, labels, clean)
    assert quality is not None

    assert quality["auroc"] > 0.99
    assert quality["precision_at_count"] > 0.95
    assert quality["issue_precision"] > 0.95
    assert issues.noise_rate == pytest.approx(0.25, abs=0.03)
    assert (issues.predicted_label == clean.numpy()).mean() > 0.97
    expected = 0.75 * np.eye(CLASSES) + 0.25 * np.roll(np.eye(CLASSES), 1, axis=1)
    assert np.abs(issues.transition - expected).max() < 0.08


def test_clean_labels_are_no_issues() -> None:
    tracker, labels, _ = planted(rate=0.0)
    issues = ranked(labels, tracker)

    assert issues.noise_rate < 0.02
    assert issues.is_label_issue.sum() < 8


@pytest.mark.parametrize("noise", [False, True])
def test_confirmed_labels_are_trusted_and_never_flagged(noise: bool) -> None:
    tracker, labels, clean = planted()
    confirmed = labels != clean
    confirmed[: len(labels) // 2] = False
    estimate = NoiseEstimate(torch.from_numpy(PAIRFLIP), 0.25, (0.2, 0.3)) if noise else None
    before = ranking.label_issues(labels, tracker, noise=estimate)
    after = ranking.label_issues(labels, tracker, noise=estimate, confirmed=confirmed)
    assert before is not None
    assert after is not None

    trusted = confirmed.numpy()
    assert before.is_label_issue[trusted].any()
    assert not after.is_label_issue[trusted].any()
    assert (after.label_score[trusted] == 1).all()
    assert np.array_equal(after.label_score[~trusted], before.label_score[~trusted])


def test_a_label_that_no_epoch_has_shown_is_in_the_middle_of_the_ranking() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    tracker = MarginTracker(labels, CLASSES)
    for _ in range(5):
        order = torch.randperm(COUNT - 20, generator=generator)
        record_epoch(
            tracker,
            4.0 * one_hot((labels + (labels == 1)) % CLASSES) + torch.randn(COUNT, CLASSES, generator=generator),
            order,
        )
    issues = ranked(labels, tracker)

    unseen = slice(COUNT - 20, None)
    assert (issues.predicted_label[unseen] == labels[unseen].numpy()).all()
    assert not issues.is_label_issue[unseen].any()
    assert issues.label_score[unseen] == pytest.approx(np.median(issues.label_score))


def test_an_issue_is_never_a_label_that_the_prediction_confirms() -> None:
    tracker, labels, _ = planted(rate=0.4)
    issues = ranked(labels, tracker)

    assert issues.is_label_issue.any()
    assert not (issues.is_label_issue & (issues.predicted_label == labels.numpy())).any()


def test_a_class_that_is_overpredicted_hides_no_wrong_labels() -> None:
    """A network adds 3.5 to every logit of class 0. That costs precision in the first epoch, without thresholds."""

    def precision(bias: float, epochs: int) -> float:
        tracker, labels, clean = planted(bias=bias, epochs=epochs)
        return measure.average_precision(ranked(labels, tracker).label_score, (labels != clean).numpy())

    assert precision(3.5, epochs=1) < precision(0.0, epochs=1) - 0.02
    assert precision(3.5, epochs=5) > precision(0.0, epochs=5) - 0.01


def test_a_label_that_images_with_similar_predictions_do_not_share_loses() -> None:
    """Each group of images has one prediction; two images of 300 have the label of another group."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    similar = np.eye(3)[labels] + rng.uniform(0.2, 0.4, (300, 3))
    probabilities = similar / similar.sum(axis=1, keepdims=True)
    labels[[0, 31]] = [2, 0]  # of the groups 0 and 1
    agreement = ranking.neighbour_agreement(labels, probabilities, np.eye(3)[labels])

    assert set(np.argsort(agreement)[:2]) == {0, 31}
    assert agreement.mean() == pytest.approx(0.0, abs=1e-9)
    assert agreement.std() == pytest.approx(1.0)


@pytest.mark.parametrize(("count", "classes"), [(ranking.NEIGHBOURS, 3), (300, 1)])
def test_few_images_or_one_class_have_no_agreement(count: int, classes: int) -> None:
    labels = np.arange(count) % classes
    assert not ranking.neighbour_agreement(labels, np.full((count, 3), 1 / 3), np.eye(3)[labels]).any()


def test_neighbours_vote_by_their_posterior_where_as_many_labels_are_wrong_as_right() -> None:
    """Of two classes that look alike, half of the labels of one say the other: labels cannot tell, posteriors can."""
    rng = np.random.default_rng(1)
    clean = np.arange(400) % 2
    p = np.stack([1 - clean, clean], axis=1) * 0.2 + 0.4 + rng.uniform(-0.15, 0.15, (400, 1)) * [1, -1]
    labels = np.where((clean == 0) & (rng.random(400) < 0.5), 1, clean)
    transition = np.array([[0.5, 0.5], [0.0, 1.0]])
    of_classes = label_posterior.posterior(labels, p, transition)

    def precision(votes: np.ndarray) -> float:
        return measure.average_precision(ranking.neighbour_agreement(labels, p, votes), labels != clean)

    assert precision(of_classes) > precision(np.eye(2)[labels]) + 0.05


def test_a_margin_by_hand() -> None:
    """Epochs weigh (1 * 1/2)^4 and (2 * 1)^4; the second uses the mean logits of the first, 4 and 1."""
    tracker = MarginTracker(torch.tensor([0, 1]), 2)
    # Margins 4 and -1: one label of two is fitted. Then margins 1 and -3, less or more 0.75 * (4 - 1).
    record_epoch(tracker, torch.tensor([[4.0, 0.0], [2.0, 1.0]]), torch.arange(2))
    record_epoch(tracker, torch.tensor([[2.0, 1.0], [4.0, 1.0]]), torch.arange(2))
    margins, _, weights = tracker.sums

    assert weights.tolist() == [0.0625 + 16] * 2
    assert margins.tolist() == [0.0625 * 4 + 16 * (1 - 2.25), 0.0625 * -1 + 16 * (-3 + 2.25)]


def test_the_order_of_images_in_an_epoch_means_nothing() -> None:
    labels = torch.arange(COUNT) % CLASSES
    epochs = torch.randn(2, COUNT, CLASSES, generator=torch.Generator().manual_seed(2))
    forward, backward = MarginTracker(labels, CLASSES), MarginTracker(labels, CLASSES)
    for logits in epochs:
        record_epoch(forward, logits, torch.arange(COUNT))
        record_epoch(backward, logits, torch.arange(COUNT).flip(0))

    np.testing.assert_allclose(ranked(labels, forward).label_score, ranked(labels, backward).label_score, rtol=1e-5)


def test_held_out_rows_are_put_on_the_scale_of_the_others() -> None:
    """Their margins are lower and wider; the ranking must not call them all suspicious."""
    held_out = torch.arange(0, COUNT, 10)
    margins = np.random.default_rng(0).normal(2.0, 1.0, COUNT)
    seen = margins.copy()
    seen[held_out] = 3 * seen[held_out] - 9
    calibrated = ranking.calibrate_held_out(seen, held_out.numpy())

    assert np.array_equal(np.delete(calibrated, held_out), np.delete(margins, held_out))
    assert np.median(calibrated[held_out]) == pytest.approx(np.median(np.delete(margins, held_out)))
    assert np.abs(calibrated - margins)[held_out].max() < 1
    level = np.array([1.0, 1.0, 1.0, 5.0])
    assert ranking.calibrate_held_out(level, np.array([3])).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_epochs_that_have_memorised_the_labels_hardly_count() -> None:
    """Forty that fit every label, right or wrong, with margins that say nothing, behind five that knew the truth."""
    tracker, labels, clean = planted()
    before = ranked(labels, tracker)
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        record_epoch(
            tracker, 30.0 * one_hot(labels) + 5 * torch.randn(COUNT, CLASSES, generator=generator), torch.arange(COUNT)
        )
    after, wrong = ranked(labels, tracker), (labels != clean).numpy()

    assert tracker.epochs == 45
    assert measure.average_precision(after.label_score, wrong) > 0.95
    assert after.noise_rate > 0.9 * before.noise_rate


def test_a_label_without_logits_is_in_the_middle_of_the_ranking() -> None:
    tracker = MarginTracker(torch.tensor([0, 1, 1]), 2)
    record_epoch(tracker, torch.tensor([[3.0, 0.0], [3.0, 0.0], [9.0, 9.0]]), torch.arange(2))
    issues = ranked(torch.tensor([0, 1, 1]), tracker)

    assert issues.label_score[2] == 0.5
    assert issues.label_score[1] < 0.5 < issues.label_score[0]
    assert not issues.is_label_issue[2]


def test_a_tracker_restored_continues_as_the_first() -> None:
    tracker, labels, _ = planted()
    tracker.record_logits(torch.arange(10), torch.randn(10, CLASSES))
    other = MarginTracker(labels, CLASSES)
    other.restore(*tracker.state())
    for same in (tracker, other):
        same.record_logits(torch.arange(10, 30), torch.ones(20, CLASSES))
        same.end_epoch()
        record_epoch(same, torch.ones(COUNT, CLASSES), torch.arange(COUNT))
    one, two = ranked(labels, tracker), ranked(labels, other)

    assert np.array_equal(one.label_score, two.label_score)
    assert one.noise_rate == two.noise_rate
    assert np.array_equal(one.transition, two.transition)


def test_a_tracker_without_epochs_ranks_nothing() -> None:
    assert ranking.label_issues(torch.zeros(3, dtype=torch.int64), MarginTracker(torch.zeros(3).long(), 2)) is None


def test_the_soft_confident_joint_by_hand() -> None:
    """Row 1 is labels 0 and likely 1 with probability 0.75; class 2 has no image and is not likely."""
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.875, 0.125, 0], [0.25, 0.75, 0], [0.125, 0.875, 0], [0.125, 0.875, 0]])
    joint = ranking.soft_confident_joint(labels, probabilities)

    assert joint.tolist() == [[1.25, 0.75, 0], [0, 2, 0], [0, 0, 0]]
    transition = ranking.transition_matrix(joint)
    assert transition.tolist() == [[1, 0, 0], [pytest.approx(0.75 / 2.75), pytest.approx(2 / 2.75), 0], [0, 0, 1]]


# By the posterior, where the noise is known

PAIRFLIP = 0.75 * np.eye(CLASSES) + 0.25 * np.roll(np.eye(CLASSES), 1, axis=1)


def known(transition: NDArray[np.float64], rate: float) -> NoiseEstimate:
    return NoiseEstimate(torch.from_numpy(transition), rate, (rate - 0.1, rate + 0.1))


def test_a_known_mistake_is_suspected_before_an_unknown_one() -> None:
    """The predictions contradict two labels alike; T knows the first mistake (1 for 0), not the second (2 for 0)."""
    labels = torch.tensor([1, 2, 0, 0])
    tracker = MarginTracker(labels, CLASSES)
    p = np.full((4, CLASSES), 0.1)
    p[np.arange(4), [0, 0, 0, 0]] = 0.7
    record_epoch(tracker, torch.from_numpy(np.log(p)).float(), torch.arange(4))
    issues = ranking.label_issues(labels, tracker, noise=known(PAIRFLIP, 0.25))
    assert issues is not None

    assert issues.label_score[0] < issues.label_score[1]
    assert issues.predicted_label[0] == 0
    assert issues.is_label_issue.tolist() == [True, False, False, False]
    assert (issues.noise_rate, issues.noise_interval) == (0.25, (0.15, 0.35))
    assert np.array_equal(issues.transition, PAIRFLIP)


def test_the_posterior_is_bayes_rule_and_excludes_no_class() -> None:
    labels, p = np.array([0, 1]), np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    smoothed = 0.98 * PAIRFLIP + 0.02 / CLASSES
    expected = p * smoothed[:, labels].T

    posterior = label_posterior.posterior(labels, p, PAIRFLIP)
    np.testing.assert_allclose(posterior, expected / expected.sum(axis=1, keepdims=True))
    assert (posterior[1] > 0).all()


def test_a_label_without_a_prediction_is_in_the_middle_of_the_posteriors() -> None:
    labels = torch.arange(9) % CLASSES
    tracker = MarginTracker(labels, CLASSES)
    generator = torch.Generator().manual_seed(0)
    tracker.record_logits(torch.arange(8), torch.randn(8, CLASSES, generator=generator))
    tracker.end_epoch()
    issues = ranking.label_issues(labels, tracker, noise=known(PAIRFLIP, 0.25))
    assert issues is not None

    assert issues.label_score[8] == np.median(issues.label_score[:8])
    assert issues.predicted_label[8] == labels[8]
    assert not issues.is_label_issue[8]


@pytest.mark.parametrize(("agreement", "withheld"), [(0.8, False), (0.58, False), (0.54, True), (0.04, True)])
def test_a_weak_model_does_not_tell_how_many_labels_are_wrong(agreement: float, withheld: bool) -> None:
    low, high = ranking.noise_interval(0.2, agreement, 400)
    issues = ranking.LabelIssues(
        np.ones(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=bool), 0.2, np.eye(1), np.eye(1), np.eye(1),
        (low, high), agreement,
    )  # fmt: skip
    metrics = ranking.noise_metrics(issues)
    assert low <= 0.2 <= high
    assert high >= 1 - agreement
    assert metrics["noise_rate_interval"] == [low, high]
    assert (metrics["estimated_noise_rate"] is None, metrics["noise_rate_withheld"] is not None) == (withheld, withheld)


def test_without_held_out_images_an_estimate_has_no_interval() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    tracker = MarginTracker(labels, 2)
    tracker.record_logits(torch.arange(4), 4 * torch.eye(2)[labels])
    tracker.end_epoch()
    issues = ranking.label_issues(labels, tracker)
    assert issues is not None
    assert (issues.noise_interval, issues.held_out_agreement, issues.withheld_reason) == (None, None, None)
    held = ranking.label_issues(labels, tracker, torch.tensor([1]))
    assert held is not None
    assert held.held_out_agreement == 1.0
    assert ranking.noise_metrics(None)["noise_rate_interval"] is None
