"""RandAugment: torchvision's operations and magnitudes, each as often."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import RandAugment  # type: ignore[import-untyped]

from ml.data import randaugment

SIDE = 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("magnitude", [0, 5, 9, 30])
def test_operations_and_magnitudes_are_torchvisions(magnitude: int) -> None:
    space = RandAugment()._augmentation_space(randaugment.LARGEST + 1, (SIDE, SIDE))

    assert {*randaugment.NAMES, "Identity"} == set(space)
    for name in randaugment.NAMES:
        levels, signed = space[name]
        expected = float(levels[magnitude]) if levels.ndim else 0.0
        assert randaugment.operation_magnitude(name, magnitude, SIDE) == pytest.approx(expected, abs=1e-4)
        assert signed == (name in randaugment.SIGNED)


def test_results_are_as_frequent_as_torchvisions() -> None:
    """The middle of grey images becomes darker, brighter or stays, as often as under torchvision's own."""
    count, grey = 3_000, 100
    own = randaugment.augment(torch.full((count, 5, 5, 3), grey, dtype=torch.uint8), 9, generator())[:, 2, 2, 0].int()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transform, image = RandAugment(), torch.full((3, 5, 5), grey, dtype=torch.uint8)
        known = torch.stack([transform(image)[0, 2, 2] for _ in range(count)]).int()
    for low, high in ((0, 80), (80, 96), (96, 104), (104, 256)):
        shares = [float(((values >= low) & (values < high)).float().mean()) for values in (own, known)]
        error = (2 * shares[1] * (1 - shares[1]) / count) ** 0.5
        assert shares[0] == pytest.approx(shares[1], abs=4 * error + 1e-3)


def test_a_view_repeats_with_its_generator_and_differs_between_images() -> None:
    picture = torch.randint(0, 256, (1, SIDE, SIDE, 3), generator=generator(2), dtype=torch.uint8)
    one, other = (randaugment.augment(picture.repeat(32, 1, 1, 1), 9, generator(seed)) for seed in (0, 1))

    assert torch.equal(one, randaugment.augment(picture.repeat(32, 1, 1, 1), 9, generator(0)))
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) > 16
    assert one.is_contiguous()
