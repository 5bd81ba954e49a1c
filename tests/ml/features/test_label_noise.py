"""What features say of labels, from clusters whose labels were mistaken in a known way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.evaluation import label_posterior, measure
from ml.features import label_noise

CLASSES, COUNT, DIMENSION = 4, 600, 12


def clusters(count: int = COUNT, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    """Features (count, 12) around a centre for each class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = 2 * torch.randn(classes, DIMENSION, generator=generator)
    return centres[labels] + torch.randn(count, DIMENSION, generator=generator), labels


def pairflip(clean: Tensor, rate: float) -> Tensor:
    flipped = torch.rand(len(clean), generator=torch.Generator().manual_seed(1)) < rate
    return torch.where(flipped, (clean + 1) % CLASSES, clean)


def estimate(features: Tensor, labels: Tensor, classes: int = CLASSES) -> label_noise.LabelNoise:
    return label_noise.estimate(features, labels, classes, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_mistakes_are_estimated_found_and_undone(rate: float) -> None:
    features, clean = clusters()
    labels = pairflip(clean, rate)
    noise = estimate(features, labels)
    wrong = (labels != clean).numpy()

    expected = (1 - rate) * torch.eye(CLASSES) + rate * torch.eye(CLASSES).roll(1, dims=1)
    assert (noise.transition - expected).abs().max() < 0.12
    assert noise.noise_rate == pytest.approx(wrong.mean(), abs=0.03)
    assert noise.interval[0] <= wrong.mean() <= noise.interval[1]
    posterior = label_posterior.posterior(
        labels.numpy(), noise.log_probabilities.exp().double().numpy(), noise.transition.numpy()
    )
    assert measure.average_precision(posterior[np.arange(COUNT), labels.numpy()], wrong) > 0.95
    predicted = noise.classifier(noise.projection(features)).argmax(dim=1)
    assert (predicted == clean).double().mean() > 0.97


def test_clean_labels_have_no_noise() -> None:
    features, clean = clusters()

    assert estimate(features, clean).noise_rate < 0.02


def test_the_same_numbers_come_out_again() -> None:
    features, clean = clusters(120)
    one, other = (estimate(features, pairflip(clean, 0.3)) for _ in range(2))

    assert torch.equal(one.log_probabilities, other.log_probabilities)
    assert torch.equal(one.transition, other.transition)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert one.interval == other.interval


@pytest.mark.parametrize(("count", "classes"), [(1, 2), (2, 2), (3, 4), (9, 2)])
def test_very_few_images_are_judged_too(count: int, classes: int) -> None:
    features, labels = clusters(count, classes)
    noise = estimate(features, labels, classes)

    assert bool(torch.isfinite(noise.log_probabilities).all())
    assert bool(torch.isfinite(noise.classifier.weight).all())
    torch.testing.assert_close(noise.transition.sum(dim=1), torch.ones(classes).double())
    assert 0 <= noise.interval[0] <= noise.noise_rate <= noise.interval[1] <= 1


def test_features_that_say_nothing_leave_it_open() -> None:
    labels = torch.arange(40) % CLASSES
    noise = estimate(torch.ones(40, DIMENSION), labels)

    assert bool(torch.isfinite(noise.log_probabilities).all())
    assert bool(torch.isfinite(noise.classifier.weight).all())


def test_a_part_of_many_images_is_searched_for_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    features, clean = clusters()
    monkeypatch.setattr(label_noise, "REFERENCES", 200)
    noise = estimate(features, pairflip(clean, 0.3))

    assert (noise.log_probabilities.argmax(dim=1) == clean).double().mean() > 0.95
