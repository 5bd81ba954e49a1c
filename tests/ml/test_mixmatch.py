"""MixUp and MixMatch: their values, by worked examples and by their definitions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ml.blocks import losses, mixmatch, mixup, schedules

Z, OTHER = torch.tensor([[2.0, 0, -1], [0, 1, 0.5]]), torch.tensor([[1.0, 0.5, -0.5], [0.2, 0.1, 1]])
LABELS = torch.tensor([0, 2])


def softmax(logits: Tensor) -> np.ndarray:
    powers = np.exp(logits.double().numpy())
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- loss terms ---


def test_the_prior_and_the_cross_entropies_have_the_reference_values() -> None:
    """A worked example: KL(uniform ‖ batch mean of softmax(z)) 0.0943; CE per sample 0.1698, 1.1803."""
    assert float(losses.prior_kl(Z)) == pytest.approx(0.0943, abs=1e-4)
    assert losses.cross_entropies(Z, LABELS).tolist() == pytest.approx([0.1698, 1.1803], abs=1e-4)
    assert float(losses.soft_cross_entropy(Z, torch.eye(3)[LABELS])) == pytest.approx(0.6751, abs=1e-4)


def test_soft_cross_entropy_and_entropy_are_their_definitions() -> None:
    p, q = softmax(Z), softmax(OTHER)
    result = float(losses.soft_cross_entropy(Z, torch.from_numpy(q).float()))

    assert result == pytest.approx(float(-(q * np.log(p)).sum(axis=1).mean()), rel=1e-5)
    assert float(losses.negative_entropy(Z)) == pytest.approx(float((p * np.log(p)).sum(axis=1).mean()), rel=1e-5)
    assert float(losses.negative_entropy(torch.zeros(2, 3))) == pytest.approx(-math.log(3))


def test_a_class_that_nobody_answers_costs_a_finite_amount() -> None:
    assert torch.isfinite(losses.prior_kl(torch.tensor([[500.0, 0.0, 0.0]])))


# --- targets ---


def test_sharpening_has_the_reference_value() -> None:
    """A worked example: [0.5, 0.3, 0.2] at T = 0.5."""
    sharp = mixmatch.sharpen(torch.tensor([[0.5, 0.3, 0.2]]), 0.5)

    assert sharp[0].tolist() == pytest.approx([0.6579, 0.2368, 0.1053], abs=1e-4)


def test_sharpening_leaves_all_at_one_and_the_largest_alone_near_zero() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.26, 0.24]])

    assert torch.allclose(mixmatch.sharpen(p, 1.0), p)
    assert mixmatch.sharpen(p, 0.05).argmax(dim=1).tolist() == [0, 2]
    many = torch.full((1, 1000), 1e-3)  # 0.001 to the power of 20 is no float32
    assert torch.allclose(mixmatch.sharpen(many, 0.05), many)


def test_a_guess_is_the_mean_probability_over_views_and_networks() -> None:
    result = mixmatch.average_probabilities([Z, OTHER, OTHER])

    np.testing.assert_allclose(result.numpy(), (softmax(Z) + 2 * softmax(OTHER)) / 3, rtol=1e-5)


def test_refinement_keeps_a_trusted_label_and_replaces_a_suspicious_one() -> None:
    own = torch.from_numpy(softmax(Z)).float()
    refined = mixmatch.co_refine(LABELS, torch.tensor([1.0, 0.0]), own)
    half = mixmatch.co_refine(LABELS, torch.tensor([0.5, 0.5]), own)

    assert torch.equal(refined[0], torch.tensor([1.0, 0, 0]))
    assert torch.equal(refined[1], own[1])
    assert torch.allclose(half, 0.5 * torch.eye(3)[LABELS] + 0.5 * own)


# --- mixing ---


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.75, 1.0, 4.0, 32.0])
def test_ratios_follow_the_beta_distribution(alpha: float) -> None:
    """Against numpy's draws: Kolmogorov-Smirnov at 8,000 each; 1.95 is passed once in a thousand."""
    source = generator()
    ours = np.sort(np.array([float(mixup.draw_lambda(alpha, source)) for _ in range(8_000)]))
    theirs = np.sort(np.random.default_rng(0).beta(alpha, alpha, 8_000))
    grid = np.linspace(0, 1, 2001)[1:-1]
    gap = np.abs(np.searchsorted(ours, grid) - np.searchsorted(theirs, grid)).max() / 8_000

    assert ((ours >= 0) & (ours <= 1)).all()
    assert gap * math.sqrt(8_000 / 2) < 1.95
    assert ours.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_a_folded_ratio_keeps_every_row_nearer_to_itself() -> None:
    shares = torch.tensor([0.0, 0.3, 0.5, 0.8])

    assert mixup.fold_lambda(shares).tolist() == pytest.approx([1.0, 0.7, 0.5, 0.8])


def test_rows_and_targets_mix_with_the_same_partner() -> None:
    images = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    share, partner = torch.tensor(0.75), mixup.draw_partners(torch.arange(6), generator())
    original = images.clone()
    result = mixup.mix(images, share, partner)

    assert sorted(partner.tolist()) == list(range(6))
    assert torch.equal(images, original)
    assert torch.allclose(result, 0.75 * images + 0.25 * images[partner], atol=1e-6)
    assert torch.allclose(mixup.mix(images.flatten(1), share, partner), result.flatten(1))
    assert result.is_contiguous(memory_format=torch.channels_last)


# --- the loss ---


@pytest.mark.parametrize("weight", [0.0, 25.0])
def test_the_loss_is_cross_entropy_of_the_labelled_and_squared_distance_of_the_rest(weight: float) -> None:
    logits, targets = torch.cat([Z, OTHER]), torch.from_numpy(softmax(torch.cat([OTHER, Z]))).float()
    p, q = softmax(logits), targets.double().numpy()
    expected = -(q[:2] * np.log(p[:2])).sum(axis=1).mean() + weight * ((p[2:] - q[2:]) ** 2).mean()

    assert float(mixmatch.loss(logits, targets, 2, weight)) == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_is_f32_whatever_comes_in() -> None:
    assert mixmatch.loss(Z.bfloat16(), torch.eye(3)[LABELS], 1, 1.0).dtype == torch.float32


def test_a_ramp_starts_at_nothing_and_ends_at_one() -> None:
    """DivideMix: clip((epoch + share of it - warm-up) / 16, 0, 1)."""
    assert [schedules.linear_ramp(elapsed, 16) for elapsed in (-1, 0, 4, 12.5, 16, 99)] == [0, 0, 0.25, 0.78125, 1, 1]
    assert schedules.linear_ramp(0, 0) == 1.0
