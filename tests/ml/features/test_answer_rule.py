"""The answer rule: L against permutations, the stack against likelihood, and who answers in known cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from ml.features import answer_rule


def sharp(classes: Tensor, count: int, certainty: float = 4.0) -> Tensor:
    """Log-probabilities (n, C) that favour `classes` (n,) and rank the others at random."""
    noise = 0.1 * torch.randn(len(classes), count, generator=torch.Generator().manual_seed(1))
    return (certainty * torch.nn.functional.one_hot(classes, count).float() + noise).log_softmax(dim=1)


def noisy_labels(clean: Tensor, scene: Tensor, rate: float, classes: int, *, confounded: bool) -> Tensor:
    random = torch.Generator().manual_seed(2)
    wrong = torch.rand(len(clean), generator=random) < rate
    other = scene if confounded else (clean + torch.randint(1, classes, clean.shape, generator=random)) % classes
    return torch.where(wrong, other, clean)


@pytest.fixture
def world() -> tuple[Tensor, Tensor]:
    """Clean classes and scenes of 1,200 images, independent of each other."""
    random = torch.Generator().manual_seed(0)
    return torch.arange(1200) % 6, torch.randint(6, (1200,), generator=random)


def test_mean_and_deviation_are_those_of_all_permutations() -> None:
    """Six images for which g2 predicts the same class: all 720 matchings."""
    labels = torch.tensor([1, 1, 2, 0, 2, 1])
    second = sharp(torch.zeros(6, dtype=torch.long), 3)  # class 0 for all: every other label is ruled out
    named = torch.tensor([1, 2, 2, 1, 0, 1])
    hits = [
        sum(int(label == named[i] and label != 0) for label, i in zip(labels, order, strict=True))
        for order in itertools.permutations(range(6))
    ]
    mean = sum(hits) / len(hits)
    deviation = math.sqrt(sum((hit - mean) ** 2 for hit in hits) / len(hits))
    # classes 1 and 2 share the second place, so each has one class above it: less than half of three
    second = second + torch.tensor([0.0, -1.0, -1.0]) + 1e-3 * torch.randn(6, 3, generator=torch.Generator())
    last = second.scatter(1, labels[:, None], -20.0)  # the label is the last of the three
    last = torch.where((labels == 0)[:, None], second, last)

    result = answer_rule.background_statistic(last, sharp(named, 3), labels)

    observed = sum(int(a == b and a != 0) for a, b in zip(labels, named, strict=True))
    assert result.excess == pytest.approx((observed - mean) / 6)
    assert result.deviation == pytest.approx(deviation / 6)


def test_g2_answers_where_the_scene_gives_the_label(world: tuple[Tensor, Tensor]) -> None:
    clean, scene = world
    labels = noisy_labels(clean, scene, 0.4, 6, confounded=True)

    decision = answer_rule.decide(sharp(labels, 6), sharp(clean, 6), sharp(scene, 6), labels)

    assert decision.predictor == "g2"
    assert decision.weights == (0.0, 1.0)
    assert decision.statistic.excess > 0.1
    assert "labels follow the background: yes, L = 0." in decision.reason


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_both_answer_under_ordinary_noise(world: tuple[Tensor, Tensor], rate: float) -> None:
    clean, scene = world
    labels = noisy_labels(clean, scene, rate, 6, confounded=False)

    decision = answer_rule.decide(sharp(clean, 6), sharp(clean, 6), sharp(scene, 6), labels)

    assert decision.predictor == "stack"
    assert abs(decision.statistic.excess) < 3 * decision.statistic.deviation + 1e-9
    assert "labels follow the background: no" in decision.reason


def test_noise_that_depends_on_the_class_alone_is_not_the_background(world: tuple[Tensor, Tensor]) -> None:
    """Pair flip, and backgrounds that predict the given label as well as they can from the class."""
    clean, _ = world
    random = torch.Generator().manual_seed(3)
    labels = torch.where(torch.rand(1200, generator=random) < 0.4, (clean + 1) % 6, clean)
    guessed = torch.where(torch.rand(1200, generator=random) < 0.4, (clean + 1) % 6, clean)

    statistic = answer_rule.background_statistic(sharp(clean, 6), sharp(guessed, 6), labels)

    assert not statistic.labels_follow_background
    assert abs(statistic.excess) < 3 * statistic.deviation


def test_few_images_decide_only_beyond_chance() -> None:
    near = answer_rule.BackgroundStatistic(excess=0.02, deviation=0.012)
    clear = answer_rule.BackgroundStatistic(excess=0.02, deviation=0.004)

    assert not near.labels_follow_background
    assert clear.labels_follow_background


def test_the_stack_prefers_the_better_view(world: tuple[Tensor, Tensor]) -> None:
    clean, scene = world
    good, bad = sharp(clean, 6), sharp(scene, 6)

    first, second = answer_rule.stack_weights(good, bad, clean)
    swapped = answer_rule.stack_weights(bad, good, clean)

    assert first > 0.5
    assert abs(second) < 0.3
    assert swapped == pytest.approx((second, first), abs=1e-6)


def test_no_other_weights_are_likelier(world: tuple[Tensor, Tensor]) -> None:
    clean, scene = world
    labels = noisy_labels(clean, scene, 0.3, 6, confounded=False)
    random = torch.Generator().manual_seed(4)
    one, two = (sharp(clean, 6, 2.0) + torch.randn(1200, 6, generator=random) for _ in range(2))
    best = answer_rule.stack_weights(one, two, labels)

    def likelihood(first: float, second: float) -> float:
        pooled = answer_rule.combine(one, two, first, second)
        return float(pooled.gather(1, labels[:, None]).mean())

    around = [likelihood(best[0] + a, best[1] + b) for a in (-0.05, 0.05) for b in (-0.05, 0.05)]
    assert all(likelihood(*best) > other for other in around)


def test_a_stack_of_equal_views_stays_finite_on_perfect_labels(world: tuple[Tensor, Tensor]) -> None:
    clean, _ = world
    first, second = answer_rule.stack_weights(sharp(clean, 6, 20.0), sharp(clean, 6, 20.0), clean)

    assert first == pytest.approx(second)
    assert 0 < first < 100
