"""Known transition matrices are recovered from labels alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml.features import transition_estimate
from ml.features.transition_estimate import Refined

CLASSES, COUNT = 4, 4000
PAIRFLIP = 0.6 * torch.eye(CLASSES).double() + 0.4 * torch.eye(CLASSES).double().roll(1, dims=1)
SYMMETRIC = 0.6 * torch.eye(CLASSES).double() + 0.1 * torch.ones(CLASSES, CLASSES).double()
both = pytest.mark.parametrize("transition", [PAIRFLIP, SYMMETRIC])


def draw(transition: Tensor, clean: Tensor, seed: int = 0) -> Tensor:
    """Given labels of clean ones (n,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(transition[clean], 1, generator=generator)[:, 0]


def clean_labels() -> Tensor:
    return torch.arange(COUNT) % CLASSES


def logits_of(clean: Tensor, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Calibrated logits times a scale, of classes that are drawn from them: some images cannot be told apart."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(clean), CLASSES, generator=generator)
    # x ~ N(3 e_c, 1): the posterior's logits are 3 x up to a constant
    return scale * 3 * (3 * functional.one_hot(clean, CLASSES) + noise)


@both
def test_the_labels_of_neighbours_tell_the_matrix(transition: Tensor) -> None:
    clean = clean_labels()
    votes = sum(functional.one_hot(draw(transition, clean, seed), CLASSES) for seed in range(5))
    assert isinstance(votes, Tensor)
    estimated, shares = transition_estimate.from_consensus(votes)

    assert (estimated - transition).abs().max() < 0.05
    assert (shares - 1 / CLASSES).abs().max() < 0.03


def test_a_class_with_more_wrong_labels_than_right_ones_keeps_its_name() -> None:
    right = torch.tensor([0.45, 0.58, 0.49, 0.53]).double()  # of each class; the others are labelled as the next one
    transition = right.diag() + (1 - right).diag().roll(1, dims=1)
    clean = torch.arange(320) % CLASSES
    votes = sum(functional.one_hot(draw(transition, clean, 25 + neighbour), CLASSES) for neighbour in range(5))
    assert isinstance(votes, Tensor)

    estimated, shares = transition_estimate.from_consensus(votes)

    assert (estimated - transition).abs().max() < 0.05
    assert (shares - 1 / CLASSES).abs().max() < 0.05


def test_a_class_that_no_image_has_keeps_the_first_guess() -> None:
    votes = functional.one_hot(torch.arange(200) % 2, 3) * 5
    estimated, shares = transition_estimate.from_consensus(votes)

    assert bool(torch.isfinite(estimated).all())
    torch.testing.assert_close(estimated.sum(dim=1), torch.ones(3).double())
    assert float(shares[2]) < 0.01


def test_one_class_has_one_entry() -> None:
    estimated, shares = transition_estimate.from_consensus(torch.full((5, 1), 3))

    assert estimated.tolist() == [[1.0]]
    assert shares.tolist() == [1.0]


@both
@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_logits_out_of_fold_tell_matrix_and_temperature(transition: Tensor, scale: float) -> None:
    clean = clean_labels()
    labels = draw(transition, clean)
    start = torch.lerp(transition, torch.full_like(transition, 1 / CLASSES), 0.3)
    refined = transition_estimate.refine(logits_of(clean, scale=scale), labels, start)

    assert (refined.transition - transition).abs().max() < 0.05
    assert refined.scale * scale == pytest.approx(1, abs=0.2)


def test_unsure_predictions_of_clean_labels_are_no_noise() -> None:
    clean = clean_labels()
    logits = 0.4 * logits_of(clean)
    weak = torch.lerp(logits, torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(5)) * 3, 0.6)
    assert (weak.argmax(dim=1) == clean).double().mean() < 0.9
    start = torch.lerp(torch.eye(CLASSES).double(), SYMMETRIC, 0.6)
    refined = transition_estimate.refine(weak, clean, start)
    right = transition_estimate.log_posterior(weak, clean, refined).exp().gather(1, clean[:, None])

    assert float(1 - right.mean()) < 0.08


def test_with_the_identity_only_the_temperature_is_fitted() -> None:
    clean = clean_labels()
    refined = transition_estimate.refine(logits_of(clean, scale=0.5), clean, torch.eye(CLASSES))

    assert torch.equal(refined.transition, torch.eye(CLASSES).double())
    assert refined.scale == pytest.approx(2, rel=0.2)


def test_the_posterior_is_bayes_rule() -> None:
    logits, labels = logits_of(clean_labels())[:5], torch.tensor([0, 1, 2, 3, 0])
    estimate = Refined(SYMMETRIC, 2.0, 0.0)
    expected = (2 * logits.double()).softmax(dim=1) * SYMMETRIC[:, labels].t()

    posterior = transition_estimate.log_posterior(logits, labels, estimate).exp()
    torch.testing.assert_close(posterior, expected / expected.sum(dim=1, keepdim=True))


@both
def test_the_interval_holds_the_share_of_wrong_labels(transition: Tensor) -> None:
    clean = clean_labels()
    for seed in range(3):
        labels = draw(transition, clean, seed)
        refined = transition_estimate.refine(logits_of(clean, seed), labels, transition)
        low, high = transition_estimate.noise_interval(
            logits_of(clean, seed), labels, refined, torch.Generator().manual_seed(seed)
        )

        assert low <= float((labels != clean).double().mean()) <= high
        assert high - low < 0.2


def test_fewer_images_have_a_wider_interval() -> None:
    clean = clean_labels()
    labels, logits = draw(SYMMETRIC, clean), logits_of(clean)
    estimate = Refined(SYMMETRIC, 1.0, 0.0)

    def width(count: int) -> float:
        low, high = transition_estimate.noise_interval(
            logits[:count], labels[:count], estimate, torch.Generator().manual_seed(0)
        )
        return high - low

    assert width(100) > 1.5 * width(COUNT)
