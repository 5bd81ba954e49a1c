"""Colour jitter: torchvision's operations as one map, factors within their bounds, grey stays grey."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from ml.data import color_jitter
from ml.data.autoaugment import GREY
from tests.ml.test_step_graphs import NoWaiting

SIDE = 12
NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> Tensor:
    """Of middle values, so that nothing is cut off: uint8 (4, 12, 12, 3)."""
    return torch.randint(90, 160, (4, SIDE, SIDE, 3), generator=generator(1), dtype=torch.uint8)


def factors(count: int = 4, **changed: float) -> color_jitter.Factors:
    return color_jitter.Factors(*(torch.full((count,), value) for value in (NEUTRAL | changed).values()))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_an_operation_is_torchvisions(name: str, factor: float) -> None:
    """Up to rounding, which torchvision does downwards, and for contrast in the grey as well."""
    adjusted = color_jitter.adjust(images(), factors(**{name: factor})).permute(0, 3, 1, 2)  # type: ignore[arg-type]
    known = torch.stack([getattr(functional, f"adjust_{name}")(image.permute(2, 0, 1), factor) for image in images()])

    assert int((adjusted.int() - known.int()).abs().max()) <= 1


def test_hue_turns_colours_and_leaves_grey_and_brightness() -> None:
    pictures = images()
    grey = pictures[..., :1].expand_as(pictures)
    for hue_shift in (-0.2, 0.1, 0.25):
        turned = color_jitter.adjust(pictures, factors(hue=hue_shift))
        luminance = (turned.float() - pictures) @ torch.tensor(GREY)
        assert luminance.abs().max() < 1.5
        assert (turned.int() - pictures.int()).abs().max() > 5
        assert int((color_jitter.adjust(grey, factors(hue=hue_shift)).int() - grey.int()).abs().max()) <= 1
    assert torch.equal(color_jitter.adjust(pictures, factors(hue=1.0)), pictures)


def test_a_red_image_turns_as_torchvisions_does() -> None:
    """A sixth of the circle makes red yellow, in whatever space hue is measured."""
    red = torch.tensor([180, 60, 60], dtype=torch.uint8).expand(1, 4, 4, 3)
    own = color_jitter.adjust(red, factors(1, hue=1 / 6))[0, 0, 0].int()
    known = functional.adjust_hue(red[0].permute(2, 0, 1), 1 / 6)[:, 0, 0].int()

    assert own.argmin() == known.argmin() == 2
    assert own[1] > own[2] + 40


def test_values_are_cut_off_and_not_wrapped() -> None:
    extreme = torch.tensor([0, 255], dtype=torch.uint8).repeat(24).view(1, 4, 4, 3)
    assert int(color_jitter.adjust(extreme, factors(1, brightness=2.0)).max()) == 255
    assert int(color_jitter.adjust(extreme, factors(1, contrast=2.0)).min()) == 0


def test_factors_are_uniform_and_differ_between_images() -> None:
    drawn = color_jitter.draw_factors(4_000, 0.4, generator())
    for factor, middle, reach in zip(drawn, NEUTRAL.values(), (0.4, 0.4, 0.4, 0.1), strict=True):
        distance = (factor - middle) / reach
        assert distance.abs().max() <= 1.0
        assert float(distance.mean()) == pytest.approx(0.0, abs=4 * (1 / 3 / 4_000) ** 0.5)
        assert float(distance.square().mean()) == pytest.approx(1 / 3, abs=0.03)


def test_a_view_repeats_with_its_generator_and_needs_no_waiting() -> None:
    with NoWaiting():
        one, again, other = (color_jitter.jitter(images(), 0.4, generator(seed)) for seed in (0, 0, 1))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(color_jitter.jitter(images(), 0.0, generator()), images())
