"""Pairs of a picture and its composite for networks that are trained whole: one view, one mask, b̄ in its place."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from ml.data.augmentation import Augmentation
from ml.data.dataset import LabeledImages, Selection
from ml.data.image_store import ImageStore
from ml.features.composite_store import CompositeStore
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

COUNT, SIDE = 24, 32
ROWS = torch.arange(COUNT)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])


def pictures() -> ImageStore:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, SIDE, SIDE, 3), generator=random, dtype=torch.uint8)
    return ImageStore(images, MEAN, STD, device=torch.device("cpu"))


def store(sigma: float, background: Tensor | None = None) -> CompositeStore:
    gaussians = torch.tensor([[12.0, 20.0, sigma]]).expand(COUNT, 3)
    return CompositeStore(pictures(), gaussians, torch.zeros(1, 3, SIDE, SIDE) if background is None else background)


def augmented(of: Any, kind: Augmentation, **options: Any) -> Tensor:
    views: Tensor = of.augmented(ROWS, kind, torch.Generator().manual_seed(3), **options)
    return views


@pytest.mark.parametrize("geometry", ["none", "flip", "crop_flip", "resized_crop_flip"])
@pytest.mark.parametrize("changes", [{}, {"randaugment": 9, "color_jitter": 0.4}])
def test_the_first_half_is_the_view_that_a_method_without_composites_sees(
    geometry: Any, changes: dict[str, Any]
) -> None:
    kind = Augmentation(geometry, **changes)
    pair = augmented(store(5.0), kind)

    assert pair.shape == (COUNT, 6, SIDE, SIDE)
    assert torch.equal(pair[:, :3], augmented(pictures(), kind))


def test_a_mask_that_covers_the_picture_leaves_the_same_view_in_both_halves() -> None:
    pair = augmented(store(1e4), Augmentation("flip", color_jitter=0.4))

    assert torch.equal(pair[:, :3], pair[:, 3:])


def test_the_mask_moves_with_the_picture_and_the_mean_background_stays() -> None:
    column = torch.linspace(-1, 1, SIDE).expand(1, 3, SIDE, SIDE)
    pair = augmented(store(3.0, column), Augmentation("flip"))
    plain = store(3.0, column).unaugmented(ROWS)

    mirrored = (pair[:, :3] == plain[:, :3].flip(3)).flatten(1).all(dim=1)
    assert 0 < int(mirrored.sum()) < COUNT
    # around the object's place and its mirrored one: there the composite is the picture, elsewhere b̄
    for rows, x in ((mirrored, SIDE - 1 - 12), (~mirrored, 12)):
        torch.testing.assert_close(pair[rows, 3:, 20, x], pair[rows, :3, 20, x])
        torch.testing.assert_close(pair[rows, 3:, :4], column[:, :, :4].expand(int(rows.sum()), -1, -1, -1))


def test_what_a_crop_takes_from_outside_of_the_picture_is_background() -> None:
    pair = augmented(store(1e4, torch.full((1, 3, SIDE, SIDE), 7.0)), Augmentation("crop_flip"))
    outside = (
        pair[:, :3] == -MEAN[:, None, None] / STD[:, None, None]
    )  # zero bytes, which no picture has in all channels
    outside = outside.all(dim=1)

    assert bool(outside.any())
    assert bool((pair[:, 3:].permute(0, 2, 3, 1)[outside] == 7.0).all())


def test_a_strong_view_is_a_weak_one() -> None:
    kind = Augmentation("crop_flip")
    assert torch.equal(augmented(store(5.0), kind), augmented(store(5.0), kind, strongly=True))


def test_backgrounds_hide_the_object() -> None:
    hidden = store(4.0).backgrounds(ROWS)

    assert hidden.shape == (COUNT, 3, SIDE, SIDE)
    assert float(hidden[:, :, 19:22, 11:14].abs().max()) == 0.0
    torch.testing.assert_close(hidden[:, :, 0, 31], pictures().unaugmented(ROWS)[:, :, 0, 31], atol=1e-2, rtol=0)


def test_a_version_without_some_images_locates_what_it_keeps(
    spec: Any, cached: LabeledImages, pretrained: Any, tmp_path: Any
) -> None:
    positions = torch.arange(1, len(cached.labels), 2)
    part = dataclasses.replace(
        cached,
        images=cached.images[positions],
        labels=cached.labels[positions],
        selection=Selection(cached.images, positions),
    )
    params = {"localization": "backbone"}
    settings: TrainingSpec = spec(method="denll", params=params, pretrained=True, tune="all", epochs=1)
    built = [Trainer.build(settings, images, weights=pretrained, cache=tmp_path) for images in (cached, part)]

    objects = [trainer.inputs.gaussians for trainer in built]
    assert objects[0] is not None
    assert objects[1] is not None
    assert torch.equal(objects[1], objects[0][positions])
    row = torch.tensor([1])
    one, two = built[0].inputs.train.unaugmented(positions[row]), built[1].inputs.train.unaugmented(row)
    assert torch.equal(one[:, :3], two[:, :3])
