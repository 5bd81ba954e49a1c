"""Random resized crops: boxes as torchvision draws them, enlarged as torchvision enlarges them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

from ml.data import resized_crop
from tests.ml.recorder import ReplayRecorder
from tests.ml.test_step_graphs import NoWaiting

SIDE = 40


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 5) -> Tensor:
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator(3))


@pytest.mark.parametrize("scale", [0.08, 0.5])
def test_boxes_are_distributed_as_torchvisions(scale: float) -> None:
    """Mean and deviation of area, shape and place, within four standard errors of a difference."""
    count = 3_000
    own = torch.stack(resized_crop.draw_boxes(count, 160, scale, generator()), dim=1).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        canvas = torch.empty(3, 160, 160)
        known = torch.tensor(
            [RandomResizedCrop.get_params(canvas, [scale, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
        ).double()

    for statistic in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: (box[:, 3] / box[:, 2]).log(),
        lambda box: box[:, 0] + box[:, 2] / 2,
        lambda box: box[:, 1] + box[:, 3] / 2,
    ):
        one, other = statistic(own), statistic(known)
        error = math.sqrt(2 / count) * float(other.std())
        assert abs(float(one.mean() - other.mean())) < 4 * error
        assert float(one.std()) == pytest.approx(float(other.std()), rel=0.1)


@given(st.integers(8, 512), st.floats(0.01, 1.0), st.integers(0, 1_000))
def test_every_box_lies_in_the_image(side: int, scale: float, seed: int) -> None:
    top, left, height, width = resized_crop.draw_boxes(64, side, scale, generator(seed))

    for begin, length in ((top, height), (left, width)):
        assert int(begin.min()) >= 0
        assert int(length.min()) >= 1
        assert int((begin + length).max()) <= side


def test_a_scale_of_one_shows_nearly_everything() -> None:
    top, left, height, width = resized_crop.draw_boxes(50, SIDE, 1.0, generator())

    assert torch.equal(height, torch.full((50,), SIDE)), "only a square box has the area of the image"
    assert torch.equal(width, height)
    assert torch.equal(top + left, torch.zeros_like(top))


def test_a_crop_is_torchvisions() -> None:
    rows = torch.tensor([4, 0, 0, 2]).repeat(8)
    boxes = resized_crop.draw_boxes(len(rows), SIDE, 0.08, generator())
    cropped = resized_crop.crop(images(), rows, boxes)
    for place, row in enumerate(rows.tolist()):
        top, left, height, width = (int(size[place]) for size in boxes)
        picture = images()[row].permute(2, 0, 1)
        known = functional.resized_crop(picture, top, left, height, width, [SIDE, SIDE], antialias=True)
        assert torch.equal(cropped[place].permute(2, 0, 1), known)


def test_a_batch_is_cropped_at_once_as_one_by_one() -> None:
    """The form for GPUs, which does not wait for them: in floats, so that values may round to their neighbours."""
    rows = torch.arange(5).repeat(8)
    boxes = resized_crop.draw_boxes(len(rows), SIDE, 0.08, generator(1))
    with NoWaiting():
        together = resized_crop.crop_batch(images()[rows], boxes)
    one_by_one = resized_crop.crop_each(images(), rows, boxes)

    assert together.dtype == torch.uint8
    assert together.is_contiguous()
    assert int((together.int() - one_by_one.int()).abs().max()) <= 1


def test_a_recording_draws_new_boxes_at_every_replay() -> None:
    pixels, drawing = images(), generator(2)
    cropped = torch.empty(5, SIDE, SIDE, 3, dtype=torch.uint8)

    def work() -> None:
        cropped.copy_(resized_crop.crop_batch(pixels, resized_crop.draw_boxes(5, SIDE, 0.08, drawing)))

    replay = ReplayRecorder().record(work, [drawing])
    replay()
    eager = generator(2)
    for _ in range(2):
        boxes = resized_crop.draw_boxes(5, SIDE, 0.08, eager)
    assert torch.equal(cropped, resized_crop.crop_batch(pixels, boxes))
