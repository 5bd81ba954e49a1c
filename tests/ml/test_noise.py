"""Noise: rates, structure, and the draws of the reference code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from ml import errors, noise
from ml.noise import confounded
from ml.noise.shared import cifar_classes
from ml.noise.shared.sampling import NoisyLabels
from ml.scenes import generate

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LABELS = np.arange(20_000, dtype=np.int64) % 10
RATED = [kind for kind in noise.kinds() if noise.load(kind).ABOUT["needs"] == "rate"]
ANY_CLASSES = [kind for kind in RATED if "classes" not in noise.load(kind).ABOUT]


def images(count: int) -> np.ndarray:
    return RandomState(0).randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def inject(
    kind: str,
    labels: np.ndarray = LABELS,
    class_names: Sequence[str] = CIFAR10,
    *,
    pixels: np.ndarray | None = None,
    seed: int = 0,
    **fields: Any,
) -> NoisyLabels:
    """Noise on labels that by default have no images of interest."""
    return noise.inject(kind, labels, class_names, images=images(1) if pixels is None else pixels, seed=seed, **fields)


def numbered(classes: int) -> list[str]:
    """Class names without a meaning."""
    return [str(number) for number in range(classes)]


def transition(noisy: np.ndarray, clean: np.ndarray = LABELS) -> np.ndarray:
    counts = np.zeros((10, 10))
    np.add.at(counts, (clean, noisy), 1)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True))


def targets(result: NoisyLabels, clean: np.ndarray) -> list[set[int]]:
    """Where each class went, itself not counted."""
    return [set(result.labels[clean == label].tolist()) - {label} for label in range(int(clean.max()) + 1)]


def test_exclusive_noise_never_keeps_the_clean_class() -> None:
    """At rate 1 - 1e-9 every draw is a flip: none may land on the class itself, and the others share evenly."""
    flipped = inject("symmetric", rate=1 - 1e-9, seed=1)

    assert flipped.rate == 1.0
    assert np.abs(transition(flipped.labels) - (1 - np.eye(10)) / 9).max() < 0.03


@pytest.mark.parametrize(("kind", "expected"), [("symmetric", 0.5), ("symmetric_inclusive", 0.45)])
def test_fifty_percent_inclusive_noise_is_forty_five_percent_wrong(kind: str, expected: float) -> None:
    noisy = inject(kind, rate=0.5, seed=1)

    assert noisy.rate == pytest.approx(expected, abs=0.01)
    assert noisy.rate == (noisy.labels != LABELS).mean()


def test_pairflip_reaches_only_the_successor() -> None:
    expected = 0.55 * np.eye(10) + 0.45 * np.roll(np.eye(10), 1, axis=1)

    assert np.abs(transition(inject("pairflip", rate=0.45, seed=3).labels) - expected).max() < 0.04


def test_cifar10_flips_follow_the_names_and_half_the_classes_stay() -> None:
    noisy = inject("asymmetric", rate=0.4)

    assert noisy.rate == pytest.approx(0.2, abs=0.01)
    assert targets(noisy, LABELS) == [set(), set(), {0}, {5}, {7}, {3}, set(), set(), set(), {1}]


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 7, 10, 11, 100])
def test_other_classes_circle_in_blocks_of_five(classes: int) -> None:
    labels = np.arange(4000, dtype=np.int64) % classes
    noisy = inject("asymmetric", labels, numbered(classes), rate=1 - 1e-9)

    assert noisy.rate == 1.0
    for label in range(classes):
        reached = set(noisy.labels[labels == label].tolist())
        assert len(reached) == 1
        if classes % 5 == 0:
            assert reached == {5 * (label // 5) + (label + 1) % 5}


def test_super_classes_are_twenty_of_five_and_noise_circles_inside_them() -> None:
    """The names come in another order: only they say which classes belong together."""
    names = cifar_classes.FINE[::-1]
    labels = np.arange(1000, dtype=np.int64) % 100
    noisy = inject("asymmetric_superclass", labels, names, rate=1 - 1e-9)
    groups = cifar_classes.super_classes()

    assert sorted(map(len, groups.values())) == [5] * 20
    assert groups[14] == ["baby", "boy", "girl", "man", "woman"]
    went = {names[label]: names[next(iter(reached))] for label, reached in enumerate(targets(noisy, labels))}
    assert [went[name] for name in groups[14]] == ["boy", "girl", "man", "woman", "baby"]
    assert all({went[name] for name in group} == set(group) for group in groups.values())


def test_super_classes_ask_for_the_names_of_cifar100() -> None:
    with pytest.raises(errors.UnusableData) as raised:
        inject("asymmetric_superclass", rate=0.1)

    assert raised.value.code == "noise_does_not_fit"


def test_block_swaps_are_of_two_classes_of_each_block_and_two_fifths_of_the_rate_is_wrong() -> None:
    noisy = inject("asymmetric_pairs", rate=0.4, seed=2)
    moved = [(label, *reached) for label, reached in enumerate(targets(noisy, LABELS)) if reached]

    assert noisy.rate == pytest.approx(0.16, abs=0.01)
    assert len(moved) == 4
    assert {(b, a) for a, b in moved} == set(moved)
    assert all(a // 5 == b // 5 for a, b in moved)


def test_a_given_matrix_is_what_is_drawn() -> None:
    matrix = RandomState(0).dirichlet(np.ones(10), 10).round(4)
    noisy = inject("transition", matrix=matrix.tolist())

    assert np.abs(transition(noisy.labels) - matrix).max() < 0.04


@pytest.mark.parametrize("shape", [(9, 9), (10, 9)])
def test_a_given_matrix_has_a_row_and_a_column_for_each_class(shape: tuple[int, int]) -> None:
    matrix = np.full(shape, 1 / shape[1]).tolist()
    with pytest.raises(errors.UnusableData) as raised:
        inject("transition", matrix=matrix)

    assert raised.value.code == "noise_does_not_fit"


@pytest.mark.parametrize("kind", ["instance_dependent", "instance_dependent_shared"])
@pytest.mark.parametrize(("rate", "expected"), [(0.2, 0.2055), (0.4, 0.4)])
def test_instance_noise_has_the_mean_of_the_truncated_normal(kind: str, rate: float, expected: float) -> None:
    noisy = inject(kind, pixels=images(len(LABELS)), rate=rate, seed=1)

    assert noisy.rate == pytest.approx(expected, abs=0.012)


def test_instance_noise_depends_on_the_image_alone() -> None:
    """Equal images of one class have one alternative: raw pixels make the softmax one-hot."""
    labels = np.repeat(np.arange(4, dtype=np.int64), 500)
    noisy = inject(
        "instance_dependent", labels, numbered(4), pixels=np.repeat(images(4), 500, axis=0), rate=0.5, seed=2
    )

    assert [len(reached) for reached in targets(noisy, labels)] == [1, 1, 1, 1]


def test_a_shared_projection_gives_an_image_the_same_alternative_in_two_classes() -> None:
    """Unless the alternative is one of the two; a projection for each class agrees by chance alone."""
    labels, pixels = np.repeat(np.arange(2, dtype=np.int64), 300), np.tile(images(300), (2, 1, 1, 1))

    def agreement(kind: str) -> float:
        noisy = inject(kind, labels, pixels=pixels, rate=1 - 1e-9, seed=3).labels.reshape(2, 300)
        elsewhere = (noisy > 1).all(axis=0)
        return float((noisy[0] == noisy[1])[elsewhere].mean())

    assert agreement("instance_dependent_shared") == 1.0
    assert agreement("instance_dependent") < 0.6


def test_confounded_noise_follows_the_scene_and_not_the_object() -> None:
    """Scenes are tied to classes in two thirds of the pictures; wrong labels are those of the scene."""
    drawn = generate.draw(900, seed=1, own_scene=0.6)
    noisy = inject("confounded", drawn.clean, generate.CLASSES, pixels=drawn.images, rate=0.6)
    wrong = noisy.labels != drawn.clean

    assert noisy.rate == pytest.approx(0.6 * (drawn.scenes != drawn.clean).mean(), abs=0.05)
    assert (noisy.labels == drawn.scenes)[wrong].mean() > 0.95


def test_a_background_that_says_nothing_suggests_no_class_above_others() -> None:
    blank = np.zeros((3000, 12, 12, 3), np.uint8)
    noisy = inject("confounded", LABELS[:3000], pixels=blank, rate=0.5)

    assert noisy.rate == pytest.approx(0.45, abs=0.03)
    assert np.bincount(noisy.labels, minlength=10).min() > 200


def test_only_the_border_is_looked_at() -> None:
    one = images(40)
    other = one.copy()
    other[:, 1:7, 1:7] = 255 - other[:, 1:7, 1:7]

    assert np.array_equal(confounded.ring_features(one), confounded.ring_features(other))
    other[:, 0, 0] = 255 - other[:, 0, 0]
    assert not np.array_equal(confounded.ring_features(one), confounded.ring_features(other))


def test_no_image_is_judged_by_a_classifier_that_saw_it() -> None:
    """Features that are noise fit the labels they were fitted to, but not those of another fold."""
    random = RandomState(0)
    labels = random.randint(0, 4, 100).astype(np.int64)
    noisy = confounded.suggest_classes(random.standard_normal((100, 90)), labels, 4, random)

    assert (noisy == labels).mean() < 0.45


@settings(max_examples=30)
@given(kind=st.sampled_from(ANY_CLASSES), rate=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_noise_is_pure_and_seeded(kind: str, rate: float, seed: int) -> None:
    labels = RandomState(0).randint(0, 10, 60)
    before = labels.copy()
    one, two = (inject(kind, labels, pixels=images(60), rate=rate, seed=seed) for _ in range(2))

    assert np.array_equal(one.labels, two.labels)
    assert np.array_equal(labels, before)
    assert one.rate == (one.labels != labels).mean()
    assert set(one.labels.tolist()) <= set(range(10))


@pytest.mark.parametrize("kind", RATED)
def test_rate_zero_changes_nothing(kind: str) -> None:
    noisy = inject(kind, LABELS[:50], pixels=images(50), rate=0.0, seed=1)

    assert noisy.rate == 0.0


@pytest.mark.parametrize(
    ("kind", "fields"), [("transition", {"rate": 0.1}), ("symmetric", {}), ("loud", {"rate": 0.1})]
)
def test_what_a_kind_needs_must_be_there(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="noise"):
        inject(kind, LABELS[:50], pixels=images(50), seed=1, **fields)


def test_symmetric_draws_are_those_of_the_reference_code() -> None:
    """Golden: one multinomial draw per sample from RandomState(seed), as Patrini's and Co-teaching's code do."""
    noisy = inject("symmetric", np.arange(10, dtype=np.int64), rate=0.5, seed=1)
    random = RandomState(1)
    expected = []
    for label in range(10):
        row = np.full(10, 0.5 / 9)
        row[label] = 0.5
        expected.append(int(np.where(random.multinomial(1, row, 1)[0] == 1)[0][0]))

    assert noisy.labels.tolist() == expected == [8, 1, 8, 1, 4, 7, 5, 7, 8, 9]


def test_classes_that_cannot_be_drawn_use_up_no_random_number() -> None:
    """Golden: what numpy 2.4 draws from the whole row. numpy 2.5 asks classes of probability 0 as well."""
    noisy = inject("pairflip", np.tile(np.arange(4, dtype=np.int64), 6), rate=0.4, seed=3)

    assert noisy.labels.tolist() == [0, 2, 2, 4, 0, 1, 2, 3, 0, 1, 3, 4, 0, 1, 2, 3, 0, 2, 2, 3, 1, 1, 2, 4]


def test_a_kind_is_a_file_and_listing_them_imports_no_numpy() -> None:
    script = "import sys; from ml import noise; sys.exit('numpy' in sys.modules or len(noise.kinds()) < 11)"

    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=250).returncode == 0


NEW_KIND = """
from ml.noise.shared.sampling import counted

ABOUT = {"title": "To class 0", "summary": "Every label becomes the first class.", "needs": "rate"}


def inject(parameters):
    return counted(parameters.labels, parameters.labels * 0)
"""
USE_NEW_KIND = """
import os, sys
import numpy as np
from ml import noise

noise.__path__.append(sys.argv[1])
from ml import catalog
from ml.training.spec import NoiseSpec

assert NoiseSpec(kind="to_zero", rate=0.5).kind in [entry["kind"] for entry in catalog.noises()]
labels, images = np.arange(4), np.zeros((4, 8, 8, 3), np.uint8)
assert noise.inject("to_zero", labels, ["a", "b", "c", "d"], rate=0.5, images=images, seed=0).rate == 0.75
os._exit(0)
"""


def test_a_new_file_is_a_new_kind_for_spec_catalog_and_injection(tmp_path: Path) -> None:
    (tmp_path / "to_zero.py").write_text(NEW_KIND)
    done = subprocess.run(
        [sys.executable, "-c", USE_NEW_KIND, str(tmp_path)], capture_output=True, text=True, timeout=250, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
