"""How cluttered images are, and which preset of DeNLL follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from ml import methods
from ml.data.clutter import clutter
from ml.scenes import generate

BELOW = next(rule["below"] for rule in methods.load("denll").ABOUT["rules"] if rule["fact"] == "clutter")


@pytest.mark.parametrize("image_size", [16, 32, 96])
@pytest.mark.parametrize("noise", ["ordinary", "confounded"])
def test_objects_before_even_backgrounds_are_little_clutter_under_any_noise(
    image_size: int, noise: generate.Noise
) -> None:
    assert clutter(generate.draw(120, seed=3, image_size=image_size, noise=noise).images) < BELOW


def test_noise_all_over_is_clutter() -> None:
    assert clutter(np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)) > 0.95


def test_an_object_that_fills_the_frame_is_clutter() -> None:
    """Halves of two colours, wherever the line runs: no small mask covers what differs."""
    images = np.zeros((20, 32, 32, 3), np.uint8)
    for number, image in enumerate(images):
        image[:, 6 + number :] = 200

    assert clutter(images) > BELOW


def test_a_small_object_before_nothing_leaves_nothing_outside() -> None:
    images = np.full((5, 32, 32, 3), 90, np.uint8)
    images[:, 14:17, 14:17] = 220

    assert clutter(images) < 0.2


def test_pictures_of_one_colour_have_no_clutter_and_no_error() -> None:
    assert clutter(np.full((3, 8, 8, 3), 7, np.uint8)) == 0.0


def test_a_rule_matches_below_its_bound_and_never_without_the_fact() -> None:
    presets = methods.load("denll").ABOUT["presets"]

    assert methods.suggested_params("denll", {"clutter": BELOW - 0.01}) == presets["confounded"]
    assert methods.suggested_params("denll", {"clutter": BELOW}) == {}
    assert methods.suggested_params("denll", {}) == {}
    assert methods.suggested_params("ce", {"clutter": 0.1}) == {}
