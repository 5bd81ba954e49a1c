"""What features say of labels, from clusters whose labels were mistaken in a known way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.evaluation import label_posterior, measure
from ml.features import cross_validation, label_noise, linear_probe, neighbours, transition_estimate
from ml.features.neighbours import Neighbours

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


def test_where_consensus_overestimates_a_start_with_fewer_mistakes_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    classes, count, dimension = 10, 200, 40  # so little is known of each class that neighbours have many others
    generator = torch.Generator().manual_seed(0)
    clean = torch.arange(count) % classes
    centres = 0.4 * torch.randn(classes, dimension, generator=generator)
    features = centres[clean] + torch.randn(count, dimension, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.1
    moved = torch.randint(1, classes, (count,), generator=generator)
    labels = torch.where(wrong, (clean + moved) % classes, clean)
    projected = linear_probe.fit_projection(features)(features)
    assert label_noise.consensus(projected, labels, classes).diag().mean() < 0.7  # of the labels 90 % are right

    def fit(starts: tuple[tuple[int, float], ...]) -> tuple[float, float]:
        monkeypatch.setattr(label_noise, "STARTS", starts)
        fitted = label_noise._fit(projected, labels, classes, torch.Generator().manual_seed(1), cross_validation.FOLDS)
        return fitted.estimate.loss, float((fitted.logits.argmax(dim=1) == clean).double().mean())

    (loss, right), (loss_of_first, right_of_first) = fit(label_noise.STARTS), fit(((4, 1.0), (4, 0.8)))

    assert loss < loss_of_first
    assert right > right_of_first + 0.02


def test_where_a_consensus_takes_two_classes_for_one_that_of_more_neighbours_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """About half of the labels are those of the next class: four neighbours do not tell which class is which."""
    classes, count, dimension = 10, 1200, 12
    generator = torch.Generator().manual_seed(2)
    clean = torch.arange(count) % classes
    centres = 1.84 * torch.randn(classes, dimension, generator=generator)
    features = centres[clean] + torch.randn(count, dimension, generator=generator)
    right = 0.47 + 0.11 * torch.rand(classes, generator=generator)
    wrong = torch.rand(count, generator=generator) > right[clean]
    labels = torch.where(wrong, (clean + 1) % classes, clean)

    def accuracy(starts: tuple[tuple[int, float], ...]) -> float:
        monkeypatch.setattr(label_noise, "STARTS", starts)
        return float((estimate(features, labels, classes).log_probabilities.argmax(dim=1) == clean).double().mean())

    every, of_four = label_noise.STARTS, tuple(start for start in label_noise.STARTS if start[0] == 4)
    assert accuracy(of_four) < 0.8
    assert accuracy(every) > 0.95


def test_a_part_of_many_images_is_searched_for_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    features, clean = clusters()
    monkeypatch.setattr(label_noise, "REFERENCES", 200)
    noise = estimate(features, pairflip(clean, 0.3))

    assert (noise.log_probabilities.argmax(dim=1) == clean).double().mean() > 0.95


def labels_of_pairs(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features whose largest directions are of no class, the classes, and labels of which 30 % are wrong."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.arange(count) % CLASSES
    centres = torch.randn(CLASSES, DIMENSION, generator=generator)
    nuisance = 3 * torch.randn(count, 4, generator=generator) @ torch.randn(4, DIMENSION, generator=generator)
    features = centres[clean] + nuisance + 0.4 * torch.randn(count, DIMENSION, generator=generator)
    moved = torch.randint(1, CLASSES, (count,), generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.3
    return features, clean, torch.where(wrong, (clean + moved) % CLASSES, clean)


def test_neighbours_are_searched_where_directions_within_classes_count_little(monkeypatch: pytest.MonkeyPatch) -> None:
    features, clean, labels = labels_of_pairs(300)
    spaces: list[float] = []

    def record(coordinates: Tensor, *arguments: Any, **named: Any) -> Neighbours:
        near = nearest(coordinates, *arguments, **named)
        spaces.append(float((clean[near.positions] == clean[:, None]).double().mean()))
        return near

    nearest = neighbours.nearest
    monkeypatch.setattr(neighbours, "nearest", record)
    estimate(features, labels)
    *_, first, last = spaces  # before them come those of the consensus

    assert last > first + 0.05


@pytest.mark.parametrize(("count", "draws"), [(120, 3), (121, 2), (240, 1), (250, 1)])
def test_logits_of_few_images_are_means_over_draws_of_folds(
    count: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _, labels = labels_of_pairs(count)
    projected = linear_probe.fit_projection(features)(features)
    candidate = cross_validation.PLAIN[0]
    one = cross_validation.cross_validate(projected, labels, CLASSES, [candidate], torch.Generator().manual_seed(1))
    monkeypatch.setattr(label_noise, "REPEATED_IMAGES", 360)
    repeated = label_noise._repeat(projected, labels, CLASSES, one, torch.Generator().manual_seed(2), 5)

    generator = torch.Generator().manual_seed(2)
    all_logits = [one.logits]
    for _ in range(draws - 1):
        folds = cross_validation.assign_folds(labels, 5, generator)
        all_logits.append(cross_validation.out_of_fold(projected, labels, CLASSES, candidate, folds))
    torch.testing.assert_close(repeated.logits, torch.stack(all_logits).mean(dim=0))
    assert (repeated is one) == (draws == 1)


def test_certain_labels_are_told_apart() -> None:
    """Classes far apart make a scale at which posteriors would round to 1."""
    logits = torch.tensor([[900.0, 0.0, 0.0], [600.0, 0.0, 0.0], [3.0, 0.0, 0.0]]).double()
    refined = transition_estimate.Refined(torch.eye(3).double(), 30.0, 0.0)
    log_p = label_noise.calibrate(logits, refined)
    posterior = label_posterior.posterior(np.zeros(3, np.int64), log_p.exp().double().numpy(), np.eye(3))[:, 0]

    assert log_p.exp().sum(dim=1).numpy() == pytest.approx(np.ones(3), abs=1e-6)
    assert posterior[0] > posterior[1] > posterior[2] > 0.3
