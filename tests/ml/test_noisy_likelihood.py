"""Which of two models explains noisy labels better, when the noise is known."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ml.evaluation.noisy_likelihood import noisy_likelihood

CLASSES = 3


def pairflipped(count: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """Clean classes, labels of which a share is the next class, and T."""
    clean = torch.arange(count) % CLASSES
    flipped = (torch.arange(count) // CLASSES) % 100 < 100 * rate
    labels = torch.where(flipped, (clean + 1) % CLASSES, clean)
    transition = (1 - rate) * torch.eye(CLASSES) + rate * torch.eye(CLASSES).roll(1, dims=1)
    return clean, labels, transition


def test_clean_classes_win_over_the_labels_that_noise_has_made_of_them() -> None:
    """At 45 % noise a model that predicts what labels were flipped to is right almost as often, by noisy labels."""
    clean, labels, transition = pairflipped(300, 0.45)
    knows = 5.0 * functional.one_hot(clean, CLASSES).float()
    repeats = 5.0 * functional.one_hot((clean + 1) % CLASSES, CLASSES).float()
    entropy = -(0.55 * math.log(0.55) + 0.45 * math.log(0.45))

    assert abs(noisy_likelihood(knows, labels, transition) + entropy) < 0.02
    assert noisy_likelihood(repeats, labels, transition) < noisy_likelihood(knows, labels, transition) - 0.2


def test_confidence_does_not_count() -> None:
    clean, labels, transition = pairflipped(300, 0.2)
    logits = functional.one_hot(clean, CLASSES).float()

    assert (
        abs(noisy_likelihood(4.0 * logits, labels, transition) - noisy_likelihood(6.0 * logits, labels, transition))
        < 0.02
    )


def test_a_model_of_the_given_labels_is_taken_as_one() -> None:
    """Its probabilities are those of labels: T must not be applied to them again."""
    clean, labels, transition = pairflipped(300, 0.3)
    of_labels = transition[clean].clamp_min(1e-9).log()
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))

    assert abs(noisy_likelihood(of_labels, labels, transition) + entropy) < 0.01


def test_one_impossible_label_does_not_make_it_infinite() -> None:
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0]])

    assert math.isfinite(noisy_likelihood(logits, torch.tensor([0, 1]), torch.eye(2)))
