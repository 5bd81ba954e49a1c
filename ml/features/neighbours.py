"""Nearest neighbours of images by the angle between their features.

The search is exact and works on chunks of rows: beside its result it needs the normalised references and
`CHUNK_ENTRIES` similarities, however many images there are. Among very many references, callers search a sample.

Shapes: `N` images, `R` references, `D` features, `C` classes, `k` neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ENTRIES = 1 << 22  # similarities at a time


class Neighbours(NamedTuple):
    """The nearest references of each image, the nearest first."""

    positions: Tensor  # int64 (N, k), among the references
    similarities: Tensor  # f32 (N, k), cosines


def nearest(features: Tensor, references: Tensor, count: int, *, own: Tensor | None = None) -> Neighbours:
    """The references with the largest cosine similarity.

    Args:
        features: Of the images, (N, D) of any floating type. The features of an image may be 0: it is similar to none.
        references: Features of the images to search among, (R, D).
        count: k; at most R, less one if images are among the references.
        own: int64 (N,), the position of each image among the references, which is no neighbour of its own; -1 for an
            image that is not among them. None: no image is.

    Raises:
        ValueError: There are fewer references than neighbours.
    """
    available = len(references) - (own is not None)
    if not 1 <= count <= available:
        raise ValueError(f"{count} neighbours among {available} references")
    columns = functional.normalize(references.float(), dim=1).t().contiguous()
    positions, similarities = [], []
    rows = torch.arange(len(features), device=features.device)
    for chunk in torch.split(rows, max(1, CHUNK_ENTRIES // len(references))):
        similarity = functional.normalize(features[chunk].float(), dim=1) @ columns
        if own is not None:
            among = own[chunk] >= 0
            similarity[among, own[chunk][among]] = -2.0  # below every cosine
        values, indices = similarity.topk(count, dim=1)
        positions.append(indices)
        similarities.append(values)
    return Neighbours(torch.cat(positions), torch.cat(similarities))


def votes(neighbours: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often each class is given among an image's neighbours, f32 (N, C).

    Args:
        neighbours: int64 (N, k), positions among the references.
        labels: Given labels int64 of the references, (R,).
        classes: C.
    """
    counts = torch.zeros(len(neighbours), classes, device=neighbours.device)
    rows = torch.arange(len(neighbours), device=neighbours.device)
    for column in neighbours.t():  # one neighbour at a time: scattered sums of many differ from run to run on a GPU
        counts[rows, labels[column]] += 1
    return counts
