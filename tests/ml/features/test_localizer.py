"""The border localizer finds what differs from the border, in the image's pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ml.evaluation import attention
from ml.features import localizer

SIDE = 96


def maps_with_object(x: int, y: int, cells: int = 10, reach: int = 1) -> Tensor:
    """Feature maps (1, 8, cells, cells) of noise, with other features around the cell (x, y)."""
    maps = torch.randn(1, 8, cells, cells, generator=torch.Generator().manual_seed(0))
    maps[:, :, y - reach : y + reach + 1, x - reach : x + reach + 1] += 8
    return maps


@pytest.mark.parametrize(("x", "y"), [(2, 2), (7, 3), (4, 6)])
def test_the_gaussian_stands_on_what_differs_from_the_border(x: int, y: int) -> None:
    centre_x, centre_y, sigma = localizer.BorderLocalizer(SIDE)(maps_with_object(x, y))[0]

    cell = SIDE / 10
    assert abs(centre_x - ((x + 0.5) * cell - 0.5)) < cell / 2
    assert abs(centre_y - ((y + 0.5) * cell - 0.5)) < cell / 2
    assert 0.08 * SIDE <= sigma <= 0.25 * SIDE


def test_a_larger_object_has_a_wider_gaussian() -> None:
    locate = localizer.BorderLocalizer(SIDE)

    assert locate(maps_with_object(5, 5, reach=2))[0, 2] > locate(maps_with_object(5, 5, reach=1))[0, 2]


def test_gaussians_scale_with_the_image() -> None:
    maps = maps_with_object(3, 6)
    small, large = (localizer.BorderLocalizer(side)(maps)[0] for side in (80, 160))

    assert torch.allclose((large[:2] + 0.5) / 2, small[:2] + 0.5, atol=1e-3)
    assert torch.allclose(large[2] / 2, small[2], atol=1e-3)


def test_the_map_mask_is_the_border_contrast_of_the_maps() -> None:
    maps = torch.cat([maps_with_object(3, 6), maps_with_object(6, 3)])
    mask = localizer.BorderLocalizer(SIDE).contrast(maps)

    assert torch.equal(mask, attention.contrast_to_border([maps]))
    assert mask.shape[:2] == (2, 1)
    assert mask.min() >= 0
    assert mask.amax(dim=(2, 3)).eq(1).all()


def test_a_constant_map_yields_the_widest_gaussian_in_the_middle() -> None:
    gaussian = localizer.gaussian_of_map(torch.full((1, 1, 16, 16), 0.7), SIDE)[0]

    assert torch.allclose(gaussian, torch.tensor([(SIDE - 1) / 2, (SIDE - 1) / 2, 0.25 * SIDE]), atol=1e-3)


def test_an_image_does_not_depend_on_its_batch() -> None:
    one, other = maps_with_object(3, 6), maps_with_object(6, 3)
    locate = localizer.BorderLocalizer(SIDE)

    assert torch.allclose(locate(torch.cat([one, other]))[:1], locate(one))
