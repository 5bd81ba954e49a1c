"""Laws of MixUp: what is mixed with what, and by which mixture a label is ranked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ml import networks
from ml.blocks import mixup as mixing
from ml.method import Batch, TrainHyperparameters
from ml.methods import mixup
from tests.ml.conftest import CLASSES, SIDE

COUNT = 12


def made(**params: float) -> mixup.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return mixup.Method(mixup.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def loss(method: mixup.Method) -> Callable[[Batch], Tensor]:
    return method.phases(TrainHyperparameters(2, 0.05, 0.9, 5e-4, lambda progress: 1.0))[0].loss


def batch(record_logits: Callable[[Tensor], None] = lambda _: None) -> Batch:
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(2)
    labels = torch.arange(COUNT) % CLASSES
    return Batch((images,), labels, torch.arange(COUNT), record_logits, generator=lambda _: draws)


def test_the_loss_is_both_labels_cross_entropy_by_their_shares() -> None:
    seen, draws = batch(), torch.Generator().manual_seed(2)
    share = mixing.draw_lambda(1.0, draws)
    partner = mixing.draw_partners(seen.index, draws)
    method = made()
    logits = method.network(share * seen.images + (1 - share) * seen.images[partner])
    own, other = (torch.nn.functional.cross_entropy(logits, labels) for labels in (seen.labels, seen.labels[partner]))

    assert float(loss(method)(seen).detach()) == pytest.approx(
        float((share * own + (1 - share) * other).detach()), rel=1e-4
    )


def test_large_alpha_mixes_half_and_half() -> None:
    draws = torch.Generator().manual_seed(0)
    shares = {alpha: torch.stack([mixing.draw_lambda(alpha, draws) for _ in range(200)]) for alpha in (1.0, 32.0)}

    assert shares[32.0].std() < 0.1 < shares[1.0].std()


@given(st.integers(2, 9), st.floats(0, 1), st.integers(0, 99))
def test_every_image_is_ranked_by_the_mixture_it_has_most_of(rows: int, share: float, seed: int) -> None:
    partner = mixing.draw_partners(torch.arange(rows), torch.Generator().manual_seed(seed))
    weights = mixing.mix(torch.eye(rows), torch.tensor(share), partner)

    assert (weights[mixing.dominant_rows(torch.tensor(share), partner)].diagonal() >= 0.5).all()


def test_partners_belong_to_samples_and_not_to_places() -> None:
    index = torch.tensor([40, 7, 99, 3, 12])
    backwards = index.flip(0)
    ours, theirs = (
        {int(a): int(b) for a, b in zip(order, order[partner], strict=True)}
        for order in (index, backwards)
        for partner in [mixing.draw_partners(order, torch.Generator().manual_seed(0))]
    )

    assert ours == theirs
    assert sorted(ours.values()) == sorted(index.tolist())


def test_a_sample_has_a_number_of_its_own_in_every_group_that_goes_with_it() -> None:
    labelled, unlabelled = torch.tensor([4, 0, 2]), torch.tensor([2, 4])
    numbers = mixing.row_ids([labelled, labelled, unlabelled])
    backwards = mixing.row_ids([labelled.flip(0), labelled.flip(0), unlabelled.flip(0)])

    assert len(set(numbers.tolist())) == len(numbers) == 8
    assert torch.equal(
        torch.cat([part.flip(0) for part in backwards.split([3, 3, 2])]),
        numbers,
    )
