"""The strong view: torchvision's operations for a whole batch at once, its policy's frequencies, and one hole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, autoaugment

from ml.data import autoaugment as own

SIDE, LEVELS = 32, (0, 3, 7, 9)
FILL = [float(own.FILL)] * 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planes() -> Tensor:
    """Smooth images, dark and pale, noise, and one of a single colour: uint8 (8, 3, 32, 32)."""
    coarse = torch.rand(4, 3, 6, 6, generator=generator())
    smooth = torch.nn.functional.interpolate(coarse, size=SIDE, mode="bilinear") * 200 + 20
    noise = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=generator(1)).float()
    return torch.cat([smooth, noise, torch.full((1, 3, SIDE, SIDE), 77.0)]).to(torch.uint8)


def operations(name: str, magnitude: float, count: int) -> own.Operations:
    number = own.OPERATIONS.index(name) if name else own.NO_OPERATION
    return own.Operations(torch.full((count,), number), torch.full((count,), magnitude))


@pytest.mark.parametrize("name", own.OPERATIONS)
def test_an_operation_is_torchvisions(name: str) -> None:
    """Magnitudes too; blends are summed in another order, so that some values round to their neighbours."""
    magnitudes, signed = autoaugment.AutoAugment()._augmentation_space(own.LEVELS, (SIDE, SIDE))[name]
    images = planes()
    for level in LEVELS if magnitudes.ndim else (None,):
        expected = 0.0 if level is None else float(magnitudes[level])
        assert own.magnitude(name, level, SIDE) == pytest.approx(expected, abs=1e-4)
        for sign in (1, -1) if signed else (1,):
            result = own.apply(images, operations(name, sign * own.magnitude(name, level, SIDE), len(images)))
            known = torch.stack(
                [autoaugment._apply_op(i, name, sign * expected, InterpolationMode.NEAREST, FILL) for i in images]
            )
            apart = (result.int() - known.int()).abs()
            assert apart.max() <= 1
            assert (apart > 0).float().mean() < 0.1
    assert signed == (name in own.SIGNED)


def test_an_image_does_not_depend_on_its_companions() -> None:
    """Nor does it matter whether a stage leaves images out, as on a CPU, or goes through all of them."""
    images = planes().repeat(len(own.OPERATIONS) + 1, 1, 1, 1)
    strength = {name: own.magnitude(name, 7, SIDE) for name in own.OPERATIONS} | {"": 0.0}
    mixed = [operations(name, strength[name], 8) for name in strength]
    every = own.Operations(*(torch.cat(column) for column in zip(*mixed, strict=True)))
    together = own.apply(images, every)

    assert torch.equal(together, own.tone(own.blend(own.geometric(images, every), every), every))
    for number, name in enumerate(strength):
        alone = own.apply(planes(), operations(name, strength[name], 8))
        assert torch.equal(together[8 * number : 8 * number + 8], alone)
    assert torch.equal(together[-8:], planes())


def test_operations_come_as_often_as_the_policy_says() -> None:
    """On images of one grey: inverted, brighter and darker ones are told apart, whatever else was done to them."""
    count, grey = 6_000, 100
    result = own.auto_augment(torch.full((count, 3, 4, 4), grey, dtype=torch.uint8), generator())[:, 0, 2, 2]
    policy = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10).policies
    operations = [operation for pair in policy for operation in pair]
    inverting = sum(
        p
        for name, p, level in operations
        if name == "Invert" or (name == "Solarize" and own.magnitude(name, level, 4) <= grey)
    )
    brightness = sum(p for name, p, _ in operations if name == "Brightness")
    inverted = (result.int() - (255 - grey)).abs() <= 1  # or its grey, which rounds down

    for selected, expected in (
        (inverted, inverting / len(policy)),
        ((result > own.FILL) & ~inverted, brightness / 2 / len(policy)),
        ((result > 0) & (result < grey / 2), brightness / 2 / len(policy)),
    ):
        deviation = (expected * (1 - expected) / count) ** 0.5
        assert selected.float().mean() == pytest.approx(expected, abs=4 * deviation)


def test_a_view_repeats_with_its_generator_and_differs_between_images() -> None:
    pixels = planes()[:1].permute(0, 2, 3, 1).repeat(32, 1, 1, 1)
    one, other = (own.augment(pixels, generator(seed)) for seed in (0, 1))

    assert torch.equal(one, own.augment(pixels, generator(0)))
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 32
    assert one.shape == pixels.shape
    assert one.is_contiguous()


def test_every_image_has_one_hole_of_at_most_half_its_side() -> None:
    holes = own.cut_out(torch.full((200, 3, SIDE, SIDE), 9, dtype=torch.uint8), generator()) == 0

    assert torch.equal(holes[:, 0], holes[:, 2])
    tall, wide = holes[:, 0].any(dim=2).sum(dim=1), holes[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(holes[:, 0].sum(dim=(1, 2)), tall * wide)
    assert tall.max() == wide.max() == SIDE // own.HOLE_SHARE
    assert tall.min() == wide.min() == SIDE // own.HOLE_SHARE // 2
