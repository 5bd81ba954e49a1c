"""The strong view: torchvision's operations for a whole batch at once, the released magnitudes, and one hole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, autoaugment  # type: ignore[import-untyped]

from ml.data import autoaugment as own
from ml.data import image_store
from ml.data.augmentation import Augmentation

SIDE, LEVELS = 32, (1, 3, 7, 9)
# by operation and level, as the code released with SOP and CORES computes them on images of 32 px
RELEASED = [
    ("ShearY", 8, 0.24),
    ("TranslateX", 9, 9.0),
    ("Rotate", 2, 6.0),
    ("Contrast", 6, 1.18 - 1),
    ("Sharpness", 1, 0.28 - 1),
    ("Color", 0, 0.1 - 1),
    ("Posterize", 7, 2),
    ("Solarize", 2, 205),
    ("Solarize", 8, 52),
    ("Invert", 0, 0.0),
]
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
    """Blends are summed in another order, so that some values round to their neighbours."""
    images = planes()
    for level in LEVELS:
        for sign in (1, -1) if name in own.SIGNED else (1,):
            magnitude = sign * own.magnitude(name, level, SIDE)
            if name == "Posterize":
                magnitude = int(magnitude)
            result = own.apply(images, operations(name, magnitude, len(images)))
            known = torch.stack(
                [autoaugment._apply_op(i, name, magnitude, InterpolationMode.NEAREST, FILL) for i in images]
            )
            apart = (result.int() - known.int()).abs()
            assert apart.max() <= 1
            assert (apart > 0).float().mean() < 0.1


@pytest.mark.parametrize(("name", "level", "expected"), RELEASED)
def test_magnitudes_are_those_of_the_released_code(name: str, level: int, expected: float) -> None:
    assert own.magnitude(name, level, SIDE) == pytest.approx(expected)
    if name == "TranslateX":
        assert own.magnitude(name, level, 2 * SIDE) == pytest.approx(2 * expected)


def test_the_policy_is_the_papers_but_for_one_level() -> None:
    papers = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10).policies
    differing = [
        (ours, published)
        for pair, papers_pair in zip(own.POLICY, papers, strict=True)
        for ours, published in zip(pair, papers_pair, strict=True)
        if ours != (*published[:2], published[2] or 0)
    ]
    assert differing == [(("Color", 0.2, 6), ("Color", 0.2, 8))]


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
    """On images of one grey, which shows what was done to it; a shifted one may be stretched to 255."""
    count, grey = 6_000, 100
    result = own.auto_augment(torch.full((count, 4, 4, 3), grey, dtype=torch.uint8), generator())[:, 2, 2, 0]
    expected = dict.fromkeys(("inverted", "brighter", "darker"), 0.0)
    for name, probability, level in (operation for pair in own.POLICY for operation in pair):
        magnitude = own.magnitude(name, level, 4)
        if name == "Invert" or (name == "Solarize" and magnitude <= grey):
            expected["inverted"] += probability / len(own.POLICY)
        elif name == "Brightness" and magnitude > 0:
            expected["brighter"] += probability / len(own.POLICY)
        elif name in ("Brightness", "Posterize"):
            expected["darker"] += probability / len(own.POLICY)
    inverted = (result.int() - (255 - grey)).abs() <= 1  # or its grey, which rounds down
    visible = {
        "inverted": inverted,
        "brighter": (result > grey + 5) & (result < 255) & ~inverted,
        "darker": (result > own.FILL) & (result < grey - 10),
    }

    for name, share in expected.items():
        assert visible[name].float().mean() == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_a_view_repeats_with_its_generator_and_differs_between_images() -> None:
    pixels = planes()[:1].permute(0, 2, 3, 1).repeat(32, 1, 1, 1)
    one, other = (own.auto_augment(pixels, generator(seed)) for seed in (0, 1))

    assert torch.equal(one, own.auto_augment(pixels, generator(0)))
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) > 16  # the rest drew an operation that has the same effect or none
    assert one.shape == pixels.shape
    assert one.is_contiguous()


def test_every_image_has_one_hole_of_at_most_half_its_side() -> None:
    holes = own.cut_out(torch.full((200, 3, SIDE, SIDE), 9.0), generator()) == 0

    assert torch.equal(holes[:, 0], holes[:, 2])
    tall, wide = holes[:, 0].any(dim=2).sum(dim=1), holes[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(holes[:, 0].sum(dim=(1, 2)), tall * wide)
    assert tall.max() == wide.max() == SIDE // own.HOLE_SHARE
    assert tall.min() == wide.min() == SIDE // own.HOLE_SHARE // 2


def test_the_strong_view_is_operations_then_crop_and_flip_then_a_hole_of_the_mean_colour() -> None:
    """The same draws in that order give the same view. A hole in pixels, before normalisation, would not be 0."""
    pixels = planes().permute(0, 2, 3, 1).contiguous()
    rows = torch.tensor([6, 0, 3, 5])
    mean, std = image_store.statistics(pixels, torch.arange(len(pixels)))
    store = image_store.ImageStore(pixels, mean, std, device=torch.device("cpu"))
    view = store.augmented(rows, Augmentation("crop_flip"), generator(), strongly=True)

    draws = generator()
    augmented = image_store.ImageStore(own.auto_augment(pixels[rows], draws), mean, std, device=torch.device("cpu"))
    expected = own.cut_out(augmented.augmented(torch.arange(4), Augmentation("crop_flip"), draws), draws)
    assert torch.equal(view, expected)
    assert view.is_contiguous(memory_format=torch.channels_last)
    holes = (view == 0).all(dim=1).sum(dim=(1, 2))
    assert holes.min() >= (SIDE // own.HOLE_SHARE // 2) ** 2
