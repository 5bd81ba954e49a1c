"""SOP+: SOP on the weak view, and what its two additional terms ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml import networks
from ml.blocks import losses, overparameterization
from ml.method import Batch, TrainHyperparameters
from ml.methods import sop, sop_plus
from tests.ml.conftest import CLASSES, SIDE

COUNT = 8


def images(seed: int) -> torch.Tensor:
    return torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def loss(module: Any, views: tuple[torch.Tensor, ...], **params: float) -> float:
    """Of a network as it is tested, where the views of a batch do not touch each other."""
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    method = module.Method(module.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))
    method.eval()
    phase = method.phases(TrainHyperparameters(2, 0.05, 0.9, 5e-4, lambda progress: 1.0))[0]
    assert len(phase.views) == len(views)
    return float(phase.loss(Batch(views, labels, torch.arange(COUNT), lambda _: None)).detach())


def test_without_its_terms_it_is_sop_on_the_weak_view() -> None:
    assert loss(sop_plus, (images(0), images(1)), consistency=0.0, balance=0.0) == pytest.approx(
        loss(sop, (images(0),)), rel=1e-5
    )


def test_consistency_costs_nothing_where_both_views_are_answered_alike() -> None:
    free, weighted = (loss(sop_plus, (images(0), images(0)), consistency=c, balance=0.0) for c in (0.0, 50.0))
    other, weighted_other = (loss(sop_plus, (images(0), images(1)), consistency=c, balance=0.0) for c in (0.0, 50.0))

    assert weighted == pytest.approx(free, rel=1e-5)
    assert weighted_other > other


@pytest.mark.parametrize(("statistics", "passes"), [("joint", [2 * COUNT]), ("apart", [COUNT, COUNT])])
def test_views_are_normalised_by_one_batch_or_each_by_its_own(statistics: str, passes: list[int]) -> None:
    """In training: the logits of the weak view depend on the strong one in one batch alone."""
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    params = sop_plus.Params(view_statistics=statistics)
    method = sop_plus.Method(params, labels, lambda: networks.build("small", CLASSES, SIDE))
    sizes: list[int] = []
    method.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    recorded: list[torch.Tensor] = []
    phase = method.phases(TrainHyperparameters(2, 0.05, 0.9, 5e-4, lambda progress: 1.0))[0]
    for strong in (images(1), images(2)):
        phase.loss(Batch((images(0), strong), labels, torch.arange(COUNT), recorded.append))

    assert sizes == 2 * passes
    assert torch.equal(*recorded) == (statistics == "apart")


def test_consistency_teaches_the_strong_view_alone() -> None:
    weak = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    strong = torch.tensor([[0.0, 1.0, 0.5]], requires_grad=True)
    divergence = losses.consistency_kl(weak, strong)
    divergence.backward()

    p, q = weak.detach().softmax(dim=1), strong.detach().softmax(dim=1)
    assert float(divergence.detach()) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    assert weak.grad is None
    torch.testing.assert_close(strong.grad, q - p)


def test_balance_is_least_where_all_classes_come_equally_often() -> None:
    even = overparameterization.class_balance_loss(torch.eye(4))
    uneven = overparameterization.class_balance_loss(torch.tensor([[0.7, 0.1, 0.1, 0.1]]))
    absent = overparameterization.class_balance_loss(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))

    assert float(even) == pytest.approx(torch.tensor(4.0).log().item())
    assert even < uneven < absent
    assert torch.isfinite(absent)
