"""Classifiers on fixed features: the minimum they stand for, their projection, their memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.features import linear_probe

COUNT, DIMENSION, CLASSES = 60, 7, 3


def clusters(count: int = COUNT, dimension: int = DIMENSION, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features (count, dimension) around one centre for each class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = 3 * torch.randn(CLASSES, dimension, generator=generator)
    return centres[labels] + spread * torch.randn(count, dimension, generator=generator), labels


def objective(
    classifier: linear_probe.Classifier,
    projected: Tensor,
    labels: Tensor,
    penalty: float,
    transition: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The loss as its definition says, by autograd's own operations."""
    p = classifier(projected).softmax(dim=1)
    p = p if transition is None else p @ transition
    losses = -(p.gather(1, labels[:, None])[:, 0] + (0 if transition is None else 1e-6)).log()
    weights = torch.ones(len(labels)) if weights is None else weights
    squares = classifier.weight.square().sum() + classifier.bias.square().sum()
    return (losses * weights).sum() / weights.sum() + penalty / 2 * squares


TRANSITION = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.0, 0.2, 0.8]])
WEIGHTS = torch.linspace(0, 1, COUNT)


@pytest.mark.parametrize("transition", [None, TRANSITION])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_the_fit_is_a_minimum_of_its_objective(transition: Tensor | None, weights: Tensor | None) -> None:
    projected, labels = clusters()
    fitted = linear_probe.fit(projected, labels, CLASSES, 0.01, transition=transition, weights=weights)

    parameters = [fitted.weight.requires_grad_(), fitted.bias.requires_grad_()]
    objective(linear_probe.Classifier(*parameters), projected, labels, 0.01, transition, weights).backward()
    for parameter in parameters:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 2e-3


def test_components_of_very_different_variance_reach_the_minimum() -> None:
    projected, labels = clusters(600, 40, spread=6.0)
    projected = projected * torch.logspace(0, -3, 40)
    fitted = linear_probe.fit(projected, labels, CLASSES, 1e-7)
    best = fitted
    for _ in range(20):
        best = linear_probe.fit(projected, labels, CLASSES, 1e-7, start=best)
    losses = [float(objective(one, projected, labels, 1e-7)) for one in (fitted, best)]

    assert losses[0] - losses[1] < 1e-4


@pytest.mark.parametrize("transition", [None, TRANSITION])
def test_a_start_changes_the_minimum_by_no_more_than_the_tolerance(transition: Tensor | None) -> None:
    projected, labels = clusters()
    start = linear_probe.fit(projected, labels, CLASSES, 0.1)
    one = linear_probe.fit(projected, labels, CLASSES, 0.01, transition=transition)
    other = linear_probe.fit(projected, labels, CLASSES, 0.01, transition=transition, start=start)

    losses = [float(objective(fitted, projected, labels, 0.01, transition)) for fitted in (one, other)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert float(objective(start, projected, labels, 0.01, transition)) > losses[0] + 1e-3


def test_images_without_weight_are_as_if_they_were_not_there() -> None:
    projected, labels = clusters()
    half = (torch.arange(COUNT) < COUNT // 2).float()
    weighted = linear_probe.fit(projected, labels, CLASSES, 0.01, weights=half)
    alone = linear_probe.fit(projected[: COUNT // 2], labels[: COUNT // 2], CLASSES, 0.01)

    torch.testing.assert_close(weighted.weight, alone.weight, atol=2e-3, rtol=0)


def test_a_class_without_images_is_never_predicted() -> None:
    projected, labels = clusters()
    fitted = linear_probe.fit(projected, labels, CLASSES + 1, 1e-3)

    assert bool(torch.isfinite(fitted.weight).all())
    assert int(fitted(projected).argmax(dim=1).max()) < CLASSES


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters()
    whole = linear_probe.fit_projection(features)
    expected = linear_probe.fit(whole(features), labels, CLASSES, 0.01)
    monkeypatch.setattr(linear_probe, "CHUNK_ENTRIES", 5 * DIMENSION)

    projection = linear_probe.fit_projection(features)
    torch.testing.assert_close(projection(features).abs(), whole(features).abs(), atol=1e-5, rtol=1e-4)
    fitted = linear_probe.fit(whole(features), labels, CLASSES, 0.01)
    torch.testing.assert_close(fitted.weight, expected.weight, atol=1e-3, rtol=1e-3)


def test_projections_are_centred_with_variance_one_and_keep_the_largest_directions() -> None:
    features, _ = clusters()
    projected = linear_probe.fit_projection(features, components=4)(features)

    assert projected.shape == (COUNT, 4)
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert float(projected.square().sum(dim=1).mean()) == pytest.approx(1, rel=1e-4)
    standardised = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    variances = torch.linalg.svdvals(standardised).square()[:4]
    torch.testing.assert_close(
        projected.square().mean(dim=0).flip(0), variances / variances.sum(), atol=1e-4, rtol=1e-3
    )


def test_a_feature_that_is_the_same_for_all_images_does_not_matter() -> None:
    features, _ = clusters()
    wider = torch.cat([features, torch.full((COUNT, 1), 5.0)], dim=1)
    projected = linear_probe.fit_projection(wider)(wider)

    assert bool(torch.isfinite(projected).all())
    assert projected.square().sum(dim=1).mean() == pytest.approx(1, rel=1e-4)


def test_equal_features_of_all_images_project_to_zero() -> None:
    features = torch.ones(5, DIMENSION)

    assert linear_probe.fit_projection(features)(features).abs().max() < 1e-3


def test_half_precision_features_are_projected() -> None:
    features, _ = clusters()
    half = features.half()

    projected = linear_probe.fit_projection(half)(half)
    torch.testing.assert_close(projected, linear_probe.fit_projection(half.float())(half.float()))


def test_a_layer_gives_the_logits_of_projection_and_classifier() -> None:
    features, labels = clusters()
    projection = linear_probe.fit_projection(features, components=4)
    classifier = linear_probe.fit(projection(features), labels, CLASSES, 1e-3).scaled(2.0)
    layer = nn.Linear(DIMENSION, CLASSES)
    linear_probe.fold_into(layer, projection, classifier)

    torch.testing.assert_close(layer(features), classifier(projection(features)), atol=1e-4, rtol=1e-4)


def test_known_mistakes_do_not_move_the_classifier() -> None:
    """Class 0 is called 1 three times out of ten: the forward-corrected classifier still finds class 0."""
    features, clean = clusters(900)
    projected = linear_probe.fit_projection(features)(features)
    flipped = torch.rand(900, generator=torch.Generator().manual_seed(1)) < 0.45
    labels = torch.where((clean == 0) & flipped, 1, clean)
    transition = torch.tensor([[0.55, 0.45, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    fitted = linear_probe.fit(projected, labels, CLASSES, 1e-3, transition=transition)

    p = fitted(projected).softmax(dim=1)
    assert float(functional.nll_loss((p + 1e-6).log(), clean)) < 0.1
