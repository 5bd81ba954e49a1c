"""Nearest neighbours against the definition, and their memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml.features import neighbours

FEATURES = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
OWN = torch.arange(50)


def test_the_most_similar_others_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = torch.nn.functional.cosine_similarity(FEATURES[:, None], FEATURES[None], dim=2).fill_diagonal_(-2)
    expected = cosines.topk(3, dim=1)
    monkeypatch.setattr(neighbours, "CHUNK_ENTRIES", 7 * 50)  # seven rows at a time
    near = neighbours.nearest(FEATURES, FEATURES, 3, own=OWN)

    assert torch.equal(near.positions, expected.indices)
    torch.testing.assert_close(near.similarities, expected.values)


def test_only_images_among_the_references_are_left_out() -> None:
    own = torch.where(OWN < 10, OWN, -1)
    near = neighbours.nearest(FEATURES, FEATURES[:10], 1, own=own).positions[:, 0]

    assert bool((near[:10] != OWN[:10]).all())
    copies = neighbours.nearest(FEATURES[:10], FEATURES[:10], 1).positions[:, 0]
    assert torch.equal(copies, OWN[:10])


def test_more_neighbours_than_references_are_refused() -> None:
    with pytest.raises(ValueError, match="5 neighbours among 4"):
        neighbours.nearest(FEATURES[:5], FEATURES[:5], 5, own=OWN[:5])


def test_an_image_without_features_has_finite_similarities() -> None:
    near = neighbours.nearest(torch.zeros(1, 6), FEATURES, 2)

    assert torch.equal(near.similarities, torch.zeros(1, 2))


def test_votes_count_the_labels_of_neighbours() -> None:
    labels = torch.tensor([2, 0, 2, 1])
    votes = neighbours.votes(torch.tensor([[0, 2, 1], [3, 3, 3]]), labels, 3)

    assert votes.tolist() == [[1, 0, 2], [0, 3, 0]]


def test_a_hundred_thousand_images_need_no_table_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Similarities come in chunks, however many images there are: their largest is what the constant says."""
    largest = 0
    topk = torch.Tensor.topk

    def measured(similarity: torch.Tensor, *args: Any, **named: Any) -> object:
        nonlocal largest
        largest = max(largest, similarity.numel())
        return topk(similarity, *args, **named)

    monkeypatch.setattr(torch.Tensor, "topk", measured)
    neighbours.nearest(torch.randn(100_000, 2), torch.randn(1_000, 2), 1)
    assert 0 < largest <= neighbours.CHUNK_ENTRIES
