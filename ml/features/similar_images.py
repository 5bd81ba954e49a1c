"""Images that look alike: the neighbours of each, near-duplicates, outliers, and a map on which alike is near.

Near-duplicates are neighbours whose pixels agree: a picture that was copied, scaled or compressed again. What the
network takes for alike is not enough, since a network that fits its labels well makes all images of a class alike.

Shapes: `N` images, `D` features, `S` side, `k` neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ml.data.stored_rows import Rows
from ml.features import linear_probe, neighbours

NEIGHBOURS = 30  # of each image
COMPONENTS = 128  # of the embeddings among which neighbours are searched
MOST = 200_000  # images: beyond, the search would take longer than a training
OUTLIER_NEIGHBOURS = 10  # whose mean distance is measured
FAR_OUT = 3.0  # quartile distances above the upper quartile (Tukey 1977)
THUMBNAIL = 16  # pixels of a side, by which pictures are compared
SAME_PICTURE = 0.98  # correlation of two thumbnails
CHUNK = 4096  # images whose thumbnails are made at a time


class SimilarImages(NamedTuple):
    """What is alike among N images.

    Attributes:
        neighbours: int64 (N, k), the nearest first.
        similarities: f32 (N, k), cosines.
        distances: f32 (N,), mean 1 - cosine over the `OUTLIER_NEIGHBOURS` nearest.
        is_outlier: bool (N,).
        duplicate_of: int64 (N,), the first of the images that look the same; -1 where no other does.
        points: f32 (N, 2), where each image is on the map: its first two principal components.
    """

    neighbours: Tensor
    similarities: Tensor
    distances: Tensor
    is_outlier: Tensor
    duplicate_of: Tensor
    points: Tensor


def can_be_found(count: int) -> bool:
    """Whether similar images are looked for among so many."""
    return 3 <= count <= MOST


def find(embeddings: Tensor, thumbnails: Tensor) -> SimilarImages | None:
    """Neighbours, outliers and near-duplicates.

    Args:
        embeddings: (N, D) of any floating type.
        thumbnails: f32 (N, P) of the same images, by `make_thumbnails`.

    Returns:
        None where `can_be_found` says no.
    """
    count = len(embeddings)
    if not can_be_found(count):
        return None
    projected = linear_probe.fit_projection(embeddings, COMPONENTS)(embeddings)
    near = neighbours.nearest(projected, projected, min(NEIGHBOURS, count - 1), own=torch.arange(count))
    distances = 1 - near.similarities[:, :OUTLIER_NEIGHBOURS].mean(dim=1)
    low, high = torch.quantile(distances[:: max(1, count // (1 << 20))], torch.tensor([0.25, 0.75]))
    return SimilarImages(
        near.positions,
        near.similarities,
        distances,
        distances > high + FAR_OUT * (high - low),
        _first_of_same(near.positions, thumbnails),
        functional.pad(projected, (2, 0))[:, -2:].flip(1),  # the components come in rising order; there may be one
    )


def make_thumbnails(images: Rows) -> Tensor:
    """Grey thumbnails whose inner products are correlations.

    Args:
        images: uint8 (N, S, S, 3).

    Returns:
        f32 (N, P); zeros for a picture of one colour, which is like no other.
    """
    chunks = []
    for rows in torch.split(torch.arange(len(images)), CHUNK) if len(images) else ():
        grey = images[rows].float().mean(dim=3)
        pixels = functional.adaptive_avg_pool2d(grey[:, None], THUMBNAIL).flatten(1)
        pixels = pixels - pixels.mean(dim=1, keepdim=True)
        norm = pixels.norm(dim=1, keepdim=True)
        chunks.append(torch.where(norm > THUMBNAIL, pixels / norm.clamp(min=1), 0))  # a deviation of one grey level
    return torch.cat(chunks) if chunks else torch.zeros(0, THUMBNAIL**2)


def _first_of_same(positions: Tensor, thumbnails: Tensor) -> Tensor:
    """int64 (N,): the first image of each set of near-duplicates, which a chain of them joins; -1 for the others."""
    pairs: list[tuple[int, int]] = []
    for column in positions.t():
        correlation = (thumbnails * thumbnails[column]).sum(dim=1)
        rows = torch.nonzero(correlation >= SAME_PICTURE)[:, 0]
        pairs += zip(rows.tolist(), column[rows].tolist(), strict=True)
    first = list(range(len(thumbnails)))

    def find_first(image: int) -> int:
        while first[image] != image:
            first[image] = first[first[image]]
            image = first[image]
        return image

    for one, two in pairs:
        low, high = sorted((find_first(one), find_first(two)))
        first[high] = low
    result = torch.full((len(thumbnails),), -1)
    for image in {image for pair in pairs for image in pair}:
        result[image] = find_first(image)
    return result
