"""Neighbours, outliers and near-duplicates among drawn pictures."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from ml.features import similar_images

SIDE, COUNT = 48, 40


def squares(seed: int, count: int = COUNT) -> list[np.ndarray]:
    """Smooth pictures, each another one."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in coarse]


def compressed(image: np.ndarray) -> np.ndarray:
    """The picture scaled down and up again, and saved as a JPEG of low quality."""
    file = io.BytesIO()
    small = Image.fromarray(image).resize((SIDE // 2, SIDE // 2))
    small.resize((SIDE, SIDE)).save(file, "JPEG", quality=40)
    return np.asarray(Image.open(file))


def test_a_copied_picture_is_found_and_a_picture_of_the_same_class_is_not() -> None:
    images = squares(1)
    images[30], images[35] = compressed(images[3]), compressed(images[3])
    thumbnails = similar_images.make_thumbnails(torch.from_numpy(np.stack(images)))
    of_class = torch.nn.functional.one_hot(torch.arange(COUNT) % 4, 4).float()
    # a network that makes the images of a class almost the same, as one does that fits its labels well
    embeddings = of_class + 0.01 * torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    embeddings[[30, 35]] = embeddings[3] + 1e-3
    similar = similar_images.find(embeddings, thumbnails)
    assert similar is not None
    same = {3, 30, 35}
    assert {row for row in range(COUNT) if similar.duplicate_of[row] >= 0} == same
    assert set(similar.duplicate_of[sorted(same)].tolist()) == {3}
    assert {30, 35} <= set(similar.neighbours[3].tolist())
    assert all(row not in similar.neighbours[row] for row in range(COUNT))


def test_an_image_unlike_all_others_is_an_outlier() -> None:
    generator = torch.Generator().manual_seed(3)
    embeddings = 5 * torch.eye(16)[torch.arange(200) % 4] + 0.3 * torch.randn(200, 16, generator=generator)
    embeddings[17] = 5 * torch.eye(16)[15]
    similar = similar_images.find(embeddings.half(), torch.zeros(200, 256))
    assert similar is not None
    assert torch.nonzero(similar.is_outlier)[:, 0].tolist() == [17]
    assert bool((similar.duplicate_of == -1).all())


def test_the_map_shows_the_two_directions_in_which_images_differ_most() -> None:
    random = torch.randn(300, 2, generator=torch.Generator().manual_seed(5))
    embeddings = torch.cat(
        [random[:, :1].expand(-1, 6), random[:, 1:].expand(-1, 3)], dim=1
    )  # six say one, three the other
    similar = similar_images.find(embeddings, torch.zeros(300, 256))
    assert similar is not None
    correlation = torch.corrcoef(torch.cat([similar.points, random], dim=1).t())[:2, 2:].abs()
    assert torch.allclose(correlation, torch.eye(2), atol=0.1)
    one_feature = similar_images.find(embeddings[:, :1], torch.zeros(300, 256))
    assert one_feature is not None
    assert one_feature.points[:, 1].tolist() == [0.0] * 300


def test_pictures_of_one_colour_are_no_duplicates_and_few_images_have_no_neighbours() -> None:
    plain = torch.full((4, SIDE, SIDE, 3), 7, dtype=torch.uint8)
    thumbnails = similar_images.make_thumbnails(plain)
    assert float(thumbnails.abs().max()) == 0.0
    similar = similar_images.find(torch.eye(4), thumbnails)
    assert similar is not None
    assert similar.duplicate_of.tolist() == [-1] * 4
    assert similar_images.find(torch.eye(2), thumbnails[:2]) is None
