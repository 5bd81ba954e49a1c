"""Noise: rates, structure, and the draws of the reference code."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml import noise
from ml.spec import NoiseKind

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = np.arange(20_000, dtype=np.int64) % 10


def images(count: int) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def transition(noisy: np.ndarray, clean: np.ndarray = LABELS) -> np.ndarray:
    counts = np.zeros((10, 10))
    np.add.at(counts, (clean, noisy), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def test_exclusive_noise_never_keeps_the_clean_class() -> None:
    """At rate 1 - 1e-9 every draw is a flip: none may land on the class itself, and the others share evenly."""
    flipped = noise.symmetric(LABELS, 10, 1 - 1e-9, seed=1)

    assert flipped.rate == 1.0
    assert np.abs(transition(flipped.labels) - (1 - np.eye(10)) / 9).max() < 0.03


@pytest.mark.parametrize(("inclusive", "expected"), [(False, 0.5), (True, 0.45)])
def test_fifty_percent_inclusive_noise_is_forty_five_percent_wrong(inclusive: bool, expected: float) -> None:
    found = noise.symmetric(LABELS, 10, 0.5, seed=1, inclusive=inclusive)

    assert found.rate == pytest.approx(expected, abs=0.01)
    assert found.rate == (found.labels != LABELS).mean()


def test_pairflip_reaches_only_the_successor() -> None:
    expected = 0.55 * np.eye(10) + 0.45 * np.roll(np.eye(10), 1, axis=1)

    assert np.abs(transition(noise.pairflip(LABELS, 10, 0.45, seed=3).labels) - expected).max() < 0.04


def test_cifar10_flips_follow_the_names_and_half_the_classes_stay() -> None:
    found = noise.asymmetric(LABELS, CIFAR10, 0.4, seed=0)
    seen = transition(found.labels)

    assert found.rate == pytest.approx(0.2, abs=0.01)
    assert {(i, j) for i, j in zip(*np.nonzero(seen), strict=True) if i != j} == {
        (9, 1),
        (2, 0),
        (4, 7),
        (3, 5),
        (5, 3),
    }


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 7, 10, 11, 100])
def test_other_classes_circle_in_blocks_of_five(classes: int) -> None:
    labels = np.arange(4000, dtype=np.int64) % classes
    found = noise.asymmetric(labels, [str(number) for number in range(classes)], 1 - 1e-9, seed=0)

    assert found.rate == 1.0
    for label in range(classes):
        targets = set(found.labels[labels == label].tolist())
        assert len(targets) == 1
        if classes % 5 == 0:
            assert targets == {5 * (label // 5) + (label + 1) % 5}


@pytest.mark.parametrize(("rate", "expected"), [(0.2, 0.2055), (0.4, 0.4)])
def test_instance_noise_has_the_mean_of_the_truncated_normal(rate: float, expected: float) -> None:
    found = noise.instance_dependent(LABELS, 10, images(len(LABELS)), rate, seed=1)

    assert found.rate == pytest.approx(expected, abs=0.012)


def test_instance_noise_depends_on_the_image_alone() -> None:
    """Equal images of one class have one alternative: raw pixels make the softmax one-hot."""
    labels = np.repeat(np.arange(4, dtype=np.int64), 500)
    equal = np.repeat(images(4), 500, axis=0)
    found = noise.instance_dependent(labels, 4, equal, 0.5, seed=2)

    for label in range(4):
        assert len(set(found.labels[labels == label].tolist()) - {label}) == 1


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(get_args(NoiseKind)), rate=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_noise_is_pure_and_seeded(kind: str, rate: float, seed: int) -> None:
    labels = np.random.RandomState(0).randint(0, 10, 60)
    before = labels.copy()
    one, two = (noise.inject(kind, labels, CIFAR10, rate=rate, images=images(60), seed=seed) for _ in range(2))

    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(labels, before)
    assert one.rate == (one.labels != labels).mean()
    assert set(one.labels.tolist()) <= set(range(10))


@pytest.mark.parametrize("kind", get_args(NoiseKind))
def test_rate_zero_changes_nothing(kind: str) -> None:
    found = noise.inject(kind, LABELS[:50], CIFAR10, rate=0.0, images=images(50), seed=1)

    assert found.rate == 0.0


def test_symmetric_draws_are_those_of_the_reference_code() -> None:
    """Golden: one multinomial draw per sample from RandomState(seed), as Patrini's and Co-teaching's code do."""
    found = noise.symmetric(np.arange(10, dtype=np.int64), 10, 0.5, seed=1)
    random = np.random.RandomState(1)
    expected = []
    for label in range(10):
        row = np.full(10, 0.5 / 9)
        row[label] = 0.5
        expected.append(int(np.where(random.multinomial(1, row, 1)[0] == 1)[0][0]))

    assert found.labels.tolist() == expected == [8, 1, 8, 1, 4, 7, 5, 7, 8, 9]
