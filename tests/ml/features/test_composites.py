"""Composites keep the object, replace what lies around it by the classes' mean background, and never see a label."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.blocks import localization
from ml.features import composites

SIDE = 32


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def places(count: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.cat([torch.rand(count, 2, generator=random) * SIDE, torch.full((count, 1), 4.0)], dim=1)


def test_a_composite_is_the_object_before_the_mean_background() -> None:
    pictures, mean = images(4), images(1, seed=2)
    mask = localization.gaussian_mask(places(4), SIDE, SIDE)

    made = composites.composite(pictures, places(4), mean)

    assert torch.allclose(made, mask * pictures + (1 - mask) * mean, atol=1e-6)


def test_the_own_background_gives_the_picture_back() -> None:
    pictures = images(1)

    assert torch.allclose(composites.composite(pictures, places(1), pictures), pictures, atol=1e-6)


def test_a_background_alone_shows_nothing_of_the_object() -> None:
    pictures, mean, gaussians = images(3), images(1, seed=2), places(3)
    hidden = localization.gaussian_mask(gaussians, SIDE, SIDE) >= 1 / composites.HOLE
    others = torch.where(hidden, images(3, seed=3), pictures)  # other objects at the same places

    alone = composites.background_alone(pictures, gaussians, mean)

    assert torch.allclose(alone, composites.background_alone(others, gaussians, mean), atol=1e-6)
    assert torch.allclose(alone[hidden.expand_as(alone)], mean.expand_as(alone)[hidden.expand_as(alone)], atol=1e-6)
    assert not torch.allclose(alone, mean.expand_as(alone), atol=0.1)


def test_the_mean_background_is_uniform_over_classes_and_weighed_by_the_mask() -> None:
    pictures, gaussians, labels = images(6), places(6), torch.tensor([0, 0, 0, 0, 2, 2])
    outside = 1 - localization.gaussian_mask(gaussians, SIDE, SIDE).double()
    means = [
        (outside[labels == label] * pictures[labels == label]).sum(dim=0) / outside[labels == label].sum(dim=0)
        for label in (0, 2)
    ]

    mean = composites.mean_background([(pictures, gaussians, labels)], class_count=3)

    assert mean.dtype == torch.float32
    assert torch.allclose(mean[0].double(), (means[0] + means[1]) / 2, atol=1e-6)


def test_the_mean_background_does_not_depend_on_the_batches() -> None:
    pictures, gaussians, labels = images(9), places(9), torch.arange(9) % 3
    whole = composites.mean_background([(pictures, gaussians, labels)], class_count=3)
    streamed = composites.mean_background(
        ((pictures[rows], gaussians[rows], labels[rows]) for rows in torch.split(torch.arange(9), 2)), class_count=3
    )

    assert torch.allclose(whole, streamed, atol=1e-6)


def test_bytes_yield_the_mean_of_bytes() -> None:
    pictures = (images(4) * 255).round().byte()
    labels = torch.tensor([0, 1, 0, 1])

    mean = composites.mean_background([(pictures, places(4), labels)], class_count=2)

    assert torch.allclose(mean, 255 * composites.mean_background([(pictures / 255, places(4), labels)], class_count=2))


def test_a_class_whose_object_covers_a_pixel_leaves_it_to_the_others() -> None:
    pictures, labels = images(2), torch.tensor([0, 1])
    gaussians = torch.tensor([[8.0, 8.0, 2.0], [24.0, 24.0, 2.0]])  # the mask is 1 on one pixel

    mean = composites.mean_background([(pictures, gaussians, labels)], class_count=2)

    assert torch.allclose(mean[0, :, 8, 8], pictures[1, :, 8, 8])


def test_without_images_there_is_no_mean_background() -> None:
    with pytest.raises(ValueError, match="no images"):
        composites.mean_background([], class_count=2)
