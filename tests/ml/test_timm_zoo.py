"""timm's networks: known by their weights, divided where they run one module after the other, equal to timm's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ml import errors, networks
from ml.networks import chain, weights
from tests.ml.golden_pictures import waves

timm = pytest.importorskip("timm")

DIVIDED = ("test_resnet", "test_efficientnet", "test_convnext", "test_byobnet", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", [*DIVIDED, "test_vit"])
def test_a_network_with_weights_computes_what_timm_computes(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    options = {"img_size": 160} if name.startswith("vit") else {}
    theirs = timm.create_model(name, num_classes=5, **options).eval()
    save_file(theirs.state_dict(), tmp_path / "x.safetensors")
    record = weights.add_file(tmp_path, tmp_path / "x.safetensors", f"timm_{name}.ours")
    ours = networks.build(record.name, 5, 160, weights.file_of(tmp_path, record)).eval()

    with torch.no_grad():
        torch.testing.assert_close(ours(waves(160)), theirs(waves(160)), rtol=1e-4, atol=1e-5)
    assert record.mean == pytest.approx(theirs.pretrained_cfg["mean"])
    assert record.network == f"timm_{name}"


@pytest.mark.parametrize("name", DIVIDED)
def test_sequential_networks_are_divided_at_every_depth(name: str) -> None:
    network = networks.build(f"timm_{name}", 5, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        for tune in ("none", "last", "two"):
            frozen, trained = chain.cut(network, tune)
            assert sum(p.numel() for p in frozen.parameters()) > 0
            torch.testing.assert_close(trained(frozen(images)), expected)
    _, last = chain.cut(network, "last")
    _, two = chain.cut(network, "two")
    sizes = [sum(p.numel() for p in part.parameters()) for part in (network.classifier, last, two, network)]
    assert sizes == sorted(set(sizes))


def test_a_network_that_cannot_be_divided_is_tuned_as_a_whole_or_not_at_all() -> None:
    """Its last block adds to what came before the modules in between."""
    network = networks.build("timm_test_vit", 5, 160)

    assert isinstance(network.last_stage, nn.Identity)
    for tune in ("last", "two"):
        with pytest.raises(ValueError, match="tune none"):
            chain.cut(network, tune)
    frozen, trained = chain.cut(network, "none")
    assert [p.shape for p in trained.parameters()] == [p.shape for p in network.classifier.parameters()]
    assert any(True for _ in frozen.parameters())


def test_weights_of_another_network_of_timm_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(errors.MissingWeights) as raised:
        weights.add_file(tmp_path, tmp_path / "x.safetensors", "timm_test_byobnet")

    assert raised.value.code == "unfitting_weights"


def test_unknown_networks_are_refused_and_the_catalog_names_none() -> None:
    with pytest.raises(errors.UnknownName):
        networks.build("timm_nothing", 5, 64)
    assert not any(name.startswith("timm_") for name in networks.names())
