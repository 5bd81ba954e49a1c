"""DeNLL behind a frozen backbone: each network sees its half of the input, at every depth and with any base method."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor, nn

from ml.method import ENSEMBLE, Batch, TrainHyperparameters
from ml.methods import denll
from ml.networks import chain

CLASSES, WIDTH, ROWS = 3, 8, 12


def classifier_alone() -> chain.Chain:
    """What `tune: none` trains."""
    return chain.Chain(nn.Sequential(), nn.Sequential(), nn.Linear(WIDTH, CLASSES), 32)


def last_stage() -> chain.Chain:
    """What `tune: last` trains."""
    stage = nn.Sequential(nn.Conv2d(4, WIDTH, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return chain.Chain(nn.Sequential(), stage, nn.Linear(WIDTH, CLASSES), 32)


DEPTHS = {"none": (classifier_alone, (WIDTH,)), "last": (last_stage, (4, 5, 5))}


def made(depth: str, **params: Any) -> denll.Method:
    torch.manual_seed(0)
    checked = denll.Params(localization="backbone", **params)
    return denll.Method(checked, torch.arange(ROWS) % CLASSES, DEPTHS[depth][0])


def halves(depth: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    shape = (ROWS, *DEPTHS[depth][1])
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


@pytest.mark.parametrize("depth", DEPTHS)
def test_each_network_sees_its_half(depth: str) -> None:
    method = made(depth, gates="off").eval()
    picture, composite = halves(depth)
    before = method.heads(torch.cat([picture, composite], dim=1))
    other_composite = method.heads(torch.cat([picture, composite + 1], dim=1))
    other_picture = method.heads(torch.cat([picture + 1, composite], dim=1))

    assert torch.equal(before["g1"], other_composite["g1"])
    assert not torch.equal(before["g2"], other_composite["g2"])
    assert torch.equal(before["g2"], other_picture["g2"])
    assert not torch.equal(before["g1"], other_picture["g1"])
    assert before[ENSEMBLE].shape == (ROWS, CLASSES)


@pytest.mark.parametrize("host", ["ce", "elr", "sop", "co_teaching"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_a_step_trains_both_networks(depth: str, host: str) -> None:
    method = made(depth, host=host).train()
    inputs = torch.cat(halves(depth), dim=1)
    batch = Batch((inputs,), torch.arange(ROWS) % CLASSES, torch.arange(ROWS), lambda _: None)
    training = TrainHyperparameters(10, 0.05, 0.9, 5e-4, lambda progress: 1.0)

    loss = method.phases(training)[0].loss(batch)
    loss.backward()

    for base in (method.base1, method.base2):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in base.parameters())


def test_the_method_asks_for_composites_with_a_backbone_alone() -> None:
    assert denll.renderings(denll.Params(localization="backbone")) == ("picture", "composite")
    assert denll.renderings(denll.Params()) == ("picture",)


def test_nothing_of_a_module_is_kept_where_the_backbone_finds_objects() -> None:
    names = made("none").state_dict()

    assert not [name for name in names if "localization" in name or "class_background" in name]
    assert made("none").locate(torch.cat(halves("none"), dim=1)) is None


@pytest.mark.parametrize("reading", [{"fusion": "concat"}, {"split": "median"}])
def test_other_readings_of_the_split_are_refused_with_a_backbone(reading: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="composites"):
        denll.Params(localization="backbone", **reading)
