"""Gaussians with one covariance, against their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.features import cross_validation, discriminant

COUNT, COMPONENTS, CLASSES = 60, 5, 3


def images() -> tuple[Tensor, Tensor]:
    """Projected features (60, 5) whose components differ in spread, and memberships (60, 3)."""
    generator = torch.Generator().manual_seed(0)
    memberships = (2 * torch.randn(COUNT, CLASSES, generator=generator)).softmax(dim=1)
    spread = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05])
    projected = spread * torch.randn(COUNT, COMPONENTS, generator=generator)
    projected[:, :CLASSES] += memberships
    return projected, memberships


def fit(projected: Tensor, memberships: Tensor) -> discriminant.Gaussians:
    return discriminant.fit(discriminant.gather(projected, memberships))


def within_classes(projected: Tensor, memberships: Tensor, means: Tensor) -> Tensor:
    """The covariance within classes by its definition, f64 (K, K)."""
    x, shares = projected.double(), memberships.double()
    centred = x[:, None] - means  # (N, C, K)
    return torch.einsum("nc,nck,ncl->kl", shares, centred, centred) / len(x)


def test_means_and_covariance_are_those_of_uncertain_members() -> None:
    projected, memberships = images()
    gaussians = fit(projected, memberships)

    shares = memberships.double()
    means = (shares.t() @ projected.double()) / shares.sum(dim=0)[:, None]
    torch.testing.assert_close(gaussians.means, means, atol=1e-6, rtol=1e-6)
    within, shrinkage = within_classes(projected, memberships, means), COMPONENTS / (COMPONENTS + COUNT)
    expected = (1 - shrinkage) * within + shrinkage * within.trace() / COMPONENTS * torch.eye(COMPONENTS).double()
    torch.testing.assert_close(gaussians.factor @ gaussians.factor.t(), expected, atol=1e-6, rtol=1e-6)


def test_logits_are_log_densities_with_priors() -> None:
    projected, memberships = images()
    gaussians = fit(projected, memberships)
    covariance = gaussians.factor @ gaussians.factor.t()
    densities = torch.stack(
        [
            torch.distributions.MultivariateNormal(mean, covariance).log_prob(projected.double())
            for mean in gaussians.means
        ],
        dim=1,
    )
    expected = (densities + memberships.double().mean(dim=0).log()).log_softmax(dim=1)

    torch.testing.assert_close(gaussians.logits(projected).log_softmax(dim=1), expected, atol=1e-6, rtol=1e-6)


def test_whitened_distances_are_those_of_mahalanobis() -> None:
    projected, memberships = images()
    gaussians = fit(projected, memberships)
    inverse = torch.linalg.inv(gaussians.factor @ gaussians.factor.t())
    difference = (projected[:1] - projected[1:]).double()
    expected = torch.einsum("nk,kl,nl->n", difference, inverse, difference)
    whitened = gaussians.whiten(projected)

    torch.testing.assert_close(
        (whitened[:1] - whitened[1:]).square().sum(dim=1).double(), expected, atol=1e-3, rtol=1e-4
    )


def test_an_image_is_predicted_by_the_other_folds() -> None:
    projected, memberships = images()
    folds = cross_validation.assign_folds(memberships.argmax(dim=1), 4, torch.Generator().manual_seed(1))
    logits = discriminant.out_of_fold(projected, memberships, folds)

    for fold in range(4):
        others = folds != fold
        expected = fit(projected[others], memberships[others]).logits(projected[~others])
        torch.testing.assert_close(logits[~others], expected, atol=1e-5, rtol=1e-5)


def test_chunks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    projected, memberships = images()
    whole = fit(projected, memberships)
    monkeypatch.setattr(discriminant, "CHUNK_ENTRIES", 7 * COMPONENTS)

    for one, other in zip(whole, fit(projected, memberships), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_very_few_images_and_empty_classes_have_finite_logits(count: int) -> None:
    projected, _ = images()
    memberships = torch.eye(CLASSES)[torch.zeros(count, dtype=torch.long)]
    logits = discriminant.out_of_fold(projected[:count], memberships, torch.arange(count))

    assert bool(torch.isfinite(logits).all())
    assert count == 1 or bool((logits.argmax(dim=1) == 0).all())


def test_images_that_are_all_alike_have_finite_logits_and_coordinates() -> None:
    gaussians = fit(torch.zeros(8, COMPONENTS), torch.full((8, CLASSES), 1 / CLASSES))

    assert bool(torch.isfinite(gaussians.logits(torch.zeros(8, COMPONENTS))).all())
    assert bool(torch.isfinite(gaussians.whiten(torch.zeros(8, COMPONENTS))).all())
