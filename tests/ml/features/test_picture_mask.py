"""Masks behind a frozen backbone: the two maps, their correlation, and which of them a model's masks are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ml.evaluation import attention
from ml.features import picture_mask
from ml.features.encoder import Encoder
from ml.features.method_input import MethodInput, PictureMethod
from ml.features.picture_mask import PictureMaps
from ml.method import ENSEMBLE, Method
from ml.networks import chain

SIDE, CLASSES, WIDTH = 96, 3, 8


class OneNetwork(Method):
    """One network on the input of a method."""

    def __init__(self, network: chain.Chain) -> None:
        nn.Module.__init__(self)
        self.network = network

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        return {ENSEMBLE: self.network(images)}


def picture_method(tune: str) -> PictureMethod:
    """A backbone with maps of 6 x 6 at stride 16, and its trained part."""
    torch.manual_seed(0)
    body = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)))
    stage = nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = chain.Chain(body, stage, nn.Linear(WIDTH, CLASSES), SIDE)
    frozen, trained = chain.cut(network, tune)
    return PictureMethod(MethodInput(Encoder(frozen, SIDE), ("picture",)), OneNetwork(trained)).eval()


def spot(x: int, y: int) -> Tensor:
    """A map (1, 1, 20, 20) with one bright place."""
    cells = torch.arange(20.0)
    return torch.exp(-((cells[:, None] - y).square() + (cells[None] - x).square()) / 8)[None, None]


def test_both_depths_compute_the_same_maps() -> None:
    pictures = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 2])
    methods = [picture_method(tune) for tune in ("none", "last")]
    frozen, tuned = (picture_mask.compute_maps(one, one.input.encode(pictures), classes) for one in methods)

    assert frozen is not None
    assert tuned is not None
    assert frozen.activation is not None
    assert tuned.activation is not None
    assert frozen.contrast.shape == frozen.activation.shape
    assert torch.allclose(frozen.contrast, tuned.contrast, atol=1e-4)
    assert torch.allclose(frozen.activation, tuned.activation, atol=1e-4)


def test_activation_is_brightest_where_the_class_is_seen() -> None:
    maps = torch.zeros(1, 2, 5, 5)
    maps[0, 0, 1, 3] = 1.0
    maps[0, 1, 4, 0] = 1.0
    activation = attention.activation_of(maps, torch.tensor([[1.0, -1.0]]))[0, 0]
    row, column = divmod(int(activation.argmax()), activation.shape[1])

    cells = activation.shape[0] / 5
    assert (int(row // cells), int(column // cells)) == (1, 3)
    assert activation.min() >= 0
    assert activation.max() == 1


@pytest.mark.parametrize(("x", "correlated"), [(6, True), (14, False)])
def test_correlation_tells_whether_two_maps_show_the_same(x: int, correlated: bool) -> None:
    similarity = float(attention.correlation(spot(6, 6), spot(x, 6)))

    assert (similarity > 0.99) == correlated
    assert (similarity < 0.1) != correlated


def test_activation_is_trusted_where_it_agrees_on_most_pictures() -> None:
    agreeing = PictureMaps(spot(6, 6).expand(4, -1, -1, -1), spot(7, 6).expand(4, -1, -1, -1))
    apart = PictureMaps(spot(6, 6).expand(4, -1, -1, -1), spot(15, 15).expand(4, -1, -1, -1))

    assert picture_mask.trusts_activation(agreeing)
    assert not picture_mask.trusts_activation(apart)
    assert not picture_mask.trusts_activation(PictureMaps(spot(6, 6), None))


def test_a_mask_is_the_product_where_the_maps_agree_and_the_model_is_trusted() -> None:
    contrast = spot(6, 6).expand(2, -1, -1, -1)
    activation = torch.cat([spot(8, 6), spot(15, 15)])
    maps = PictureMaps(contrast, activation)

    masks = picture_mask.mask(maps, with_activation=True)

    assert torch.allclose(masks[1], contrast[1])
    assert not torch.allclose(masks[0], contrast[0], atol=0.05)
    assert masks.amax(dim=(2, 3)).eq(1).all()
    assert torch.equal(picture_mask.mask(maps, with_activation=False), contrast)
    assert picture_mask.uses_activation(maps, with_activation=True) == [True, False]
    assert picture_mask.uses_activation(maps, with_activation=False) == [False, False]
