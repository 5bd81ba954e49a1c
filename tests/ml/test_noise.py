"""Noise: rates, structure, and the draws of the reference code."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from ml import errors, noise
from ml.noise import cifar, classwise, confounded, instance
from ml.scenes import generate
from ml.training.spec import NoiseKind

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = np.arange(20_000, dtype=np.int64) % 10
ANY_CLASSES = [kind for kind in get_args(NoiseKind) if kind not in ("transition", "asymmetric_superclass")]


def images(count: int) -> np.ndarray:
    return RandomState(0).randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def transition(noisy: np.ndarray, clean: np.ndarray = LABELS) -> np.ndarray:
    counts = np.zeros((10, 10))
    np.add.at(counts, (clean, noisy), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def targets(found: noise.Noisy, clean: np.ndarray) -> list[set[int]]:
    """Where each class went, itself not counted."""
    return [set(found.labels[clean == label].tolist()) - {label} for label in range(int(clean.max()) + 1)]


def test_exclusive_noise_never_keeps_the_clean_class() -> None:
    """At rate 1 - 1e-9 every draw is a flip: none may land on the class itself, and the others share evenly."""
    flipped = classwise.symmetric(LABELS, 10, 1 - 1e-9, seed=1)

    assert flipped.rate == 1.0
    assert np.abs(transition(flipped.labels) - (1 - np.eye(10)) / 9).max() < 0.03


@pytest.mark.parametrize(("inclusive", "expected"), [(False, 0.5), (True, 0.45)])
def test_fifty_percent_inclusive_noise_is_forty_five_percent_wrong(inclusive: bool, expected: float) -> None:
    found = classwise.symmetric(LABELS, 10, 0.5, seed=1, inclusive=inclusive)

    assert found.rate == pytest.approx(expected, abs=0.01)
    assert found.rate == (found.labels != LABELS).mean()


def test_pairflip_reaches_only_the_successor() -> None:
    expected = 0.55 * np.eye(10) + 0.45 * np.roll(np.eye(10), 1, axis=1)

    assert np.abs(transition(classwise.pairflip(LABELS, 10, 0.45, seed=3).labels) - expected).max() < 0.04


def test_cifar10_flips_follow_the_names_and_half_the_classes_stay() -> None:
    found = classwise.asymmetric(LABELS, CIFAR10, 0.4, seed=0)

    assert found.rate == pytest.approx(0.2, abs=0.01)
    assert targets(found, LABELS) == [set(), set(), {0}, {5}, {7}, {3}, set(), set(), set(), {1}]


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 7, 10, 11, 100])
def test_other_classes_circle_in_blocks_of_five(classes: int) -> None:
    labels = np.arange(4000, dtype=np.int64) % classes
    found = classwise.asymmetric(labels, [str(number) for number in range(classes)], 1 - 1e-9, seed=0)

    assert found.rate == 1.0
    for label in range(classes):
        reached = set(found.labels[labels == label].tolist())
        assert len(reached) == 1
        if classes % 5 == 0:
            assert reached == {5 * (label // 5) + (label + 1) % 5}


def test_super_classes_are_twenty_of_five_and_noise_circles_inside_them() -> None:
    """The names come in another order: only they say which classes belong together."""
    names = cifar.FINE[::-1]
    labels = np.arange(1000, dtype=np.int64) % 100
    found = classwise.superclass(labels, names, 1 - 1e-9, seed=0)
    groups = cifar.super_classes()

    assert sorted(map(len, groups.values())) == [5] * 20
    assert groups[14] == ["baby", "boy", "girl", "man", "woman"]
    went = {names[label]: names[next(iter(reached))] for label, reached in enumerate(targets(found, labels))}
    assert [went[name] for name in groups[14]] == ["boy", "girl", "man", "woman", "baby"]
    assert all({went[name] for name in group} == set(group) for group in groups.values())


def test_super_classes_ask_for_the_names_of_cifar100() -> None:
    with pytest.raises(errors.UnusableData) as raised:
        noise.inject("asymmetric_superclass", LABELS, CIFAR10, rate=0.1, images=images(1), seed=0)

    assert raised.value.code == "noise_does_not_fit"


def test_pairs_swap_two_classes_of_each_block_and_two_fifths_of_the_rate_is_wrong() -> None:
    found = classwise.pairs(LABELS, 10, 0.4, seed=2)
    moved = [(label, *reached) for label, reached in enumerate(targets(found, LABELS)) if reached]

    assert found.rate == pytest.approx(0.16, abs=0.01)
    assert len(moved) == 4
    assert {(b, a) for a, b in moved} == set(moved)
    assert all(a // 5 == b // 5 for a, b in moved)


def test_a_given_matrix_is_what_is_drawn() -> None:
    wanted = RandomState(0).dirichlet(np.ones(10), 10).round(4)
    found = noise.inject("transition", LABELS, CIFAR10, matrix=wanted.tolist(), images=images(1), seed=0)

    assert np.abs(transition(found.labels) - wanted).max() < 0.04


@pytest.mark.parametrize("shape", [(9, 9), (10, 9)])
def test_a_given_matrix_has_a_row_and_a_column_for_each_class(shape: tuple[int, int]) -> None:
    matrix = np.full(shape, 1 / shape[1]).tolist()
    with pytest.raises(errors.UnusableData) as raised:
        noise.inject("transition", LABELS, CIFAR10, matrix=matrix, images=images(1), seed=0)

    assert raised.value.code == "noise_does_not_fit"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("rate", "expected"), [(0.2, 0.2055), (0.4, 0.4)])
def test_instance_noise_has_the_mean_of_the_truncated_normal(rate: float, expected: float, shared: bool) -> None:
    found = instance.dependent(LABELS, 10, images(len(LABELS)), rate, seed=1, shared=shared)

    assert found.rate == pytest.approx(expected, abs=0.012)


def test_instance_noise_depends_on_the_image_alone() -> None:
    """Equal images of one class have one alternative: raw pixels make the softmax one-hot."""
    labels = np.repeat(np.arange(4, dtype=np.int64), 500)
    found = instance.dependent(labels, 4, np.repeat(images(4), 500, axis=0), 0.5, seed=2)

    assert [len(reached) for reached in targets(found, labels)] == [1, 1, 1, 1]


def test_a_shared_projection_gives_an_image_the_same_alternative_in_two_classes() -> None:
    """Unless the alternative is one of the two; a projection for each class agrees by chance alone."""
    labels, pixels = np.repeat(np.arange(2, dtype=np.int64), 300), np.tile(images(300), (2, 1, 1, 1))

    def agreement(shared: bool) -> float:
        found = instance.dependent(labels, 10, pixels, 1 - 1e-9, seed=3, shared=shared).labels.reshape(2, 300)
        elsewhere = (found > 1).all(axis=0)
        return float((found[0] == found[1])[elsewhere].mean())

    assert agreement(shared=True) == 1.0
    assert agreement(shared=False) < 0.6


def test_confounded_noise_follows_the_scene_and_not_the_object() -> None:
    """Scenes are tied to classes in two thirds of the pictures; wrong labels are those of the scene."""
    drawn = generate.draw(900, seed=1, own_scene=0.6)
    found = noise.inject("confounded", drawn.clean, generate.CLASSES, rate=0.6, images=drawn.images, seed=0)
    wrong = found.labels != drawn.clean

    assert found.rate == pytest.approx(0.6 * (drawn.scenes != drawn.clean).mean(), abs=0.05)
    assert (found.labels == drawn.scenes)[wrong].mean() > 0.95


def test_a_background_that_says_nothing_suggests_no_class_above_others() -> None:
    blank = np.zeros((3000, 12, 12, 3), np.uint8)
    found = noise.inject("confounded", LABELS[:3000], CIFAR10, rate=0.5, images=blank, seed=0)

    assert found.rate == pytest.approx(0.45, abs=0.03)
    assert np.bincount(found.labels, minlength=10).min() > 200


def test_only_the_border_is_looked_at() -> None:
    one = images(40)
    other = one.copy()
    other[:, 1:7, 1:7] = 255 - other[:, 1:7, 1:7]

    assert np.array_equal(confounded.rings(one), confounded.rings(other))
    other[:, 0, 0] = 255 - other[:, 0, 0]
    assert not np.array_equal(confounded.rings(one), confounded.rings(other))


def test_no_image_is_judged_by_a_classifier_that_saw_it() -> None:
    """Features that are noise fit the labels they were fitted to, but not those of another fold."""
    random = RandomState(0)
    labels = random.randint(0, 4, 100).astype(np.int64)
    found = confounded.suggestions(random.standard_normal((100, 90)), labels, 4, random)

    assert (found == labels).mean() < 0.45


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(ANY_CLASSES), rate=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_noise_is_pure_and_seeded(kind: str, rate: float, seed: int) -> None:
    labels = RandomState(0).randint(0, 10, 60)
    before = labels.copy()
    one, two = (noise.inject(kind, labels, CIFAR10, rate=rate, images=images(60), seed=seed) for _ in range(2))

    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(labels, before)
    assert one.rate == (one.labels != labels).mean()
    assert set(one.labels.tolist()) <= set(range(10))


@pytest.mark.parametrize("kind", [kind for kind in get_args(NoiseKind) if kind != "transition"])
def test_rate_zero_changes_nothing(kind: str) -> None:
    found = noise.inject(kind, LABELS[:50], CIFAR10, rate=0.0, images=images(50), seed=1)

    assert found.rate == 0.0


@pytest.mark.parametrize(("kind", "asked"), [("transition", {"rate": 0.1}), ("symmetric", {}), ("loud", {"rate": 0.1})])
def test_what_a_kind_needs_must_be_there(kind: str, asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="noise"):
        noise.inject(kind, LABELS[:50], CIFAR10, images=images(50), seed=1, **asked)


def test_symmetric_draws_are_those_of_the_reference_code() -> None:
    """Golden: one multinomial draw per sample from RandomState(seed), as Patrini's and Co-teaching's code do."""
    found = classwise.symmetric(np.arange(10, dtype=np.int64), 10, 0.5, seed=1)
    random = RandomState(1)
    expected = []
    for label in range(10):
        row = np.full(10, 0.5 / 9)
        row[label] = 0.5
        expected.append(int(np.where(random.multinomial(1, row, 1)[0] == 1)[0][0]))

    assert found.labels.tolist() == expected == [8, 1, 8, 1, 4, 7, 5, 7, 8, 9]
