"""Out of fold means: the image's own label changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.features import cross_validation, linear_probe
from ml.features.cross_validation import PLAIN, Candidate

COUNT, CLASSES = 90, 3


def clusters(spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Projected features (90, 5) around a centre for each class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    features = torch.eye(5)[labels] * 4 + spread * torch.randn(COUNT, 5, generator=generator)
    return linear_probe.fit_projection(features)(features), labels


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_folds_are_of_one_size_in_every_class() -> None:
    _, labels = clusters()
    folds = cross_validation.assign_folds(labels, 5, generator())

    for label in range(CLASSES):
        assert torch.bincount(folds[labels == label], minlength=5).tolist() == [6] * 5
    assert not torch.equal(folds, cross_validation.assign_folds(labels, 5, torch.Generator().manual_seed(2)))


def test_an_image_is_predicted_without_its_own_label() -> None:
    projected, labels = clusters()
    folds = cross_validation.assign_folds(labels, 5, generator())
    logits = cross_validation.out_of_fold(projected, labels, CLASSES, Candidate(1e-3), folds)
    outside = folds == folds[0]
    changed = torch.where(outside, (labels + 1) % CLASSES, labels)
    of_changed = cross_validation.out_of_fold(projected, changed, CLASSES, Candidate(1e-3), folds)

    assert torch.equal(of_changed[outside], logits[outside])
    assert not torch.equal(of_changed[~outside], logits[~outside])


def test_fewer_images_than_folds_are_predicted_too() -> None:
    projected, labels = clusters()
    few, folds = slice(0, 3), cross_validation.assign_folds(labels[:3], 5, generator())
    logits = cross_validation.out_of_fold(projected[few], labels[few], CLASSES, Candidate(1e-3), folds)

    assert sorted(folds.tolist()) == [0, 1, 2]
    assert bool(torch.isfinite(logits).all())


def test_a_single_image_has_no_other_to_learn_from() -> None:
    logits = cross_validation.out_of_fold(
        torch.ones(1, 5), torch.tensor([1]), CLASSES, Candidate(1e-3), torch.tensor([0])
    )

    assert torch.equal(logits, torch.zeros(1, CLASSES))


def test_a_class_with_one_image_leaves_it_to_the_others() -> None:
    projected, labels = clusters()
    labels = torch.where(torch.arange(COUNT) == 7, CLASSES, labels)
    folds = cross_validation.assign_folds(labels, 5, generator())
    logits = cross_validation.out_of_fold(projected, labels, CLASSES + 1, Candidate(1e-3), folds)

    assert bool(torch.isfinite(logits).all())
    assert int(logits[7].argmax()) == 7 % CLASSES


def test_the_candidate_that_explains_given_labels_best_is_chosen() -> None:
    projected, labels = clusters(spread=0.3)
    hopeless = Candidate(1e4)
    result = cross_validation.cross_validate(projected, labels, CLASSES, [hopeless, *PLAIN], generator())

    assert result.candidate in PLAIN
    assert (result.logits.argmax(dim=1) == labels).double().mean() > 0.95


def test_the_same_numbers_come_out_again() -> None:
    projected, labels = clusters()
    one, other = (cross_validation.cross_validate(projected, labels, CLASSES, PLAIN, generator()) for _ in range(2))

    assert one.candidate == other.candidate
    assert torch.equal(one.logits, other.logits)


def test_a_part_of_many_images_chooses_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, labels = clusters()
    monkeypatch.setattr(cross_validation, "ROWS", 40)
    result = cross_validation.cross_validate(projected, labels, CLASSES, PLAIN, generator())

    assert result.logits.shape == (COUNT, CLASSES)
    assert (result.logits.argmax(dim=1) == labels).double().mean() > 0.8
