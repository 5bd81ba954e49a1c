"""The evidence for what a label speaks of: shares are recovered, and weights separate wrong labels from right ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.features import label_evidence

CLASSES, COUNT = 6, 6000


def world(by_background: float, by_chance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, b, given labels, and whether the object gave the label."""
    random = torch.Generator().manual_seed(0)
    clean = torch.arange(COUNT) % CLASSES
    scene, chance = (torch.randint(CLASSES, (COUNT,), generator=random) for _ in range(2))
    source = torch.rand(COUNT, generator=random)
    labels = torch.where(source < by_background, scene, clean)
    labels = torch.where(source > 1 - by_chance, chance, labels)
    by_object = (source >= by_background) & (source <= 1 - by_chance)
    q, b = (0.88 * torch.nn.functional.one_hot(of, CLASSES) + 0.02 for of in (clean, scene))
    return q, b, labels, by_object


def test_shares_of_the_mixture_are_recovered() -> None:
    q, b, labels, by_object = world(0.3, 0.2)

    result = label_evidence.estimate(q, b, labels)

    assert sum(result.shares) == pytest.approx(1.0)
    # q and b are smoothed by a tenth, which the uniform term takes over
    assert result.shares[0] == pytest.approx(0.5, abs=0.1)
    assert result.shares[1] == pytest.approx(0.3, abs=0.1)
    # a label that the object did not give may agree with it by chance, in one of six images
    right, wrong = result.object_weight[by_object].mean(), result.object_weight[~by_object].mean()
    assert right > 0.8
    assert wrong < 0.35


def test_the_background_term_can_be_left_out() -> None:
    q, _, labels, by_object = world(0.0, 0.4)

    result = label_evidence.estimate(q, None, labels)

    assert result.shares[1] == 0.0
    assert result.shares[0] == pytest.approx(0.6, abs=0.1)
    assert result.object_weight[by_object].mean() > result.object_weight[~by_object].mean() + 0.5


def test_backgrounds_take_weight_from_labels_that_they_name() -> None:
    q, b, labels, _ = world(0.3, 0.2)
    named = labels == b.argmax(dim=1)

    with_background = label_evidence.estimate(q, b, labels).object_weight
    without = label_evidence.estimate(q, None, labels).object_weight

    assert with_background[named].mean() < without[named].mean()


def test_a_draw_keeps_samples_by_their_weight() -> None:
    weights = torch.tensor([0.0, 1.0, 0.25]).repeat(4000)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.bincount(label_evidence.draw(weights, generator) % 3, minlength=3) / 4000

    assert drawn[0] == 0
    assert drawn[1] == 1
    assert drawn[2] == pytest.approx(0.25, abs=0.03)


def test_draws_of_one_seed_are_the_same_and_of_one_generator_differ() -> None:
    weights = torch.full((500,), 0.5)
    one, other = (torch.Generator().manual_seed(0) for _ in range(2))
    first = label_evidence.draw(weights, one)

    assert torch.equal(first, label_evidence.draw(weights, other))
    assert not torch.equal(first, label_evidence.draw(weights, one))
