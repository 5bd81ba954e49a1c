"""The image store: what a view may look like, and that padding and memory maps change nothing."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml.data import image_store
from ml.data.augmentation import Augmentation, Geometry

CPU = torch.device("cpu")
ZERO, ONE = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)


def images(count: int = 6, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pixels(padded_bytes: int = image_store.PADDED_BYTES) -> image_store.ImageStore:
    return image_store.ImageStore(images(), ZERO, ONE, device=CPU, padded_bytes=padded_bytes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_view_is_a_shifted_or_mirrored_image() -> None:
    rows = torch.arange(6).repeat(20)
    views = (pixels().augmented(rows, Augmentation("crop_flip"), generator()) * 255).round().to(torch.uint8)
    padded = torch.nn.functional.pad(images(), (0, 0, 2, 2, 2, 2)).permute(0, 3, 1, 2)
    seen = set()
    for row, view in zip(rows.tolist(), views, strict=True):
        possible = {
            (top, left, mirrored): candidate.flip(2) if mirrored else candidate
            for top in range(5)
            for left in range(5)
            for candidate in [padded[row, :, top : top + 16, left : left + 16]]
            for mirrored in (False, True)
        }
        result = [key for key, candidate in possible.items() if torch.equal(candidate, view)]
        assert len(result) == 1
        seen.add(result[0])

    assert len(seen) > 30  # of 50 possible ones


@pytest.mark.parametrize("geometry", get_args(Geometry))
def test_a_set_too_large_to_pad_gives_the_same_views(geometry: Geometry) -> None:
    kind = Augmentation(geometry)
    rows = torch.tensor([5, 0, 3])
    few = pixels().augmented(rows, kind, generator(1))

    assert torch.equal(few, pixels(padded_bytes=0).augmented(rows, kind, generator(1)))
    assert few.is_contiguous(memory_format=torch.channels_last)
    assert few.dtype == torch.float32


def test_padding_changes_no_unaugmented_image() -> None:
    subject = pixels()
    before = subject.unaugmented(torch.arange(6))
    subject.augmented(torch.arange(6), Augmentation("crop_flip"), generator())

    assert torch.equal(subject.unaugmented(torch.arange(6)), before)
    torch.testing.assert_close(before, images().permute(0, 3, 1, 2) / 255)


def test_normalised_pixels_have_mean_zero_and_deviation_one() -> None:
    raw = images(50)
    mean, std = image_store.statistics(raw, torch.arange(50))
    plain = image_store.ImageStore(raw, mean, std, device=CPU).unaugmented(torch.arange(50)).double()

    torch.testing.assert_close(plain.mean(dim=(0, 2, 3)), ZERO, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.std(dim=(0, 2, 3), unbiased=False), ONE, atol=1e-5, rtol=0)


def test_a_constant_channel_stays_finite() -> None:
    raw = torch.full((4, 16, 16, 3), 7, dtype=torch.uint8)
    mean, std = image_store.statistics(raw, torch.arange(4))

    assert image_store.ImageStore(raw, mean, std, device=CPU).unaugmented(torch.arange(4)).abs().max() < 1e-3


def test_statistics_read_only_the_chosen_rows() -> None:
    raw = images(8)
    changed = raw.clone()
    changed[4:] = 0

    assert torch.equal(torch.stack(image_store.statistics(raw, torch.arange(4))),
                       torch.stack(image_store.statistics(changed, torch.arange(4))))  # fmt: skip


def test_memory_mapped_images_are_not_copied_without_need(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pixels") / "p.npy"
    np.save(path, images().numpy())
    mapped = torch.from_numpy(np.load(path, mmap_mode="c"))
    subject = image_store.ImageStore(mapped, ZERO, ONE, device=CPU, padded_bytes=0)
    subject.augmented(torch.arange(3), Augmentation("crop_flip"), generator())

    assert subject._images.data_ptr() == mapped.data_ptr()  # the law is about this very memory


@given(st.integers(1, 300), st.integers(2, 64))
def test_batches_partition_the_order_and_none_is_of_one(count: int, batch_size: int) -> None:
    order = torch.randperm(count, generator=generator(count))
    batches = [
        image_store.batch_rows(order, step, batch_size) for step in range(image_store.step_count(count, batch_size))
    ]

    assert all(2 <= len(batch) <= batch_size + 1 for batch in batches)
    assert torch.cat(batches).tolist() == (order.tolist() if count > 1 else [0, 0])


@pytest.mark.parametrize(
    ("side", "memory_gb", "images"),
    [(32, None, 512), (224, None, 10), (16, None, 2048), (2048, None, 2),
     (224, 4, 10), (224, 24, 31), (224, 80, 104), (224, 1000, 512), (32, 80, 512), (16, 80, 2048)],
)  # fmt: skip
def test_batches_without_gradients_grow_with_the_memory_of_a_gpu(side: int, memory_gb: int | None, images: int) -> None:
    """Up to 512 images, and never below what a CPU takes."""
    memory_bytes = None if memory_gb is None else memory_gb << 30
    assert image_store.eval_batch_size(side, memory_bytes) == images


def test_a_store_of_other_images_repeats_no_preparation() -> None:
    """A predictor makes one for every batch."""
    subject = pixels()
    subject.augmented(torch.arange(3), Augmentation("crop_flip"), generator())  # pads the set
    other = subject.with_images(images().flip(0))

    assert other._scale is subject._scale
    assert torch.equal(other.unaugmented(torch.arange(6)), subject.unaugmented(torch.arange(6)).flip(0))
    assert torch.equal(
        other.augmented(torch.tensor([5]), Augmentation("crop_flip"), generator(1)),
        subject.augmented(torch.tensor([0]), Augmentation("crop_flip"), generator(1)),
    )
