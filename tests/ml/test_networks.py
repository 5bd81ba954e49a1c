"""Laws of the networks: named parts partition the parameters, sensible sizes are read, weights come from safe files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ml import errors, networks
from ml.formats import tensor_shapes

OURS = ("small", "resnet18", "resnet34", "preact_resnet18", "efficientnet_lite0")


@pytest.mark.parametrize("name", [*OURS, "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"])
def test_parts_partition_the_parameters_and_chain_to_the_logits(name: str) -> None:
    network = networks.build(name, classes=7, image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)

    parts = [network.body, network.last_stage, network.classifier]
    owned = [id(p) for part in parts for p in part.parameters()]
    assert sorted(owned) == sorted(id(p) for p in network.parameters())
    assert all(any(True for _ in part.parameters()) for part in parts)
    assert network.features(images).shape == (2, network.feature_count)
    assert torch.equal(network(images), network.classifier(network.features(images)))
    assert network(images).shape == (2, network.class_count) == (2, 7)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("image_size", [16, 33, 96])
def test_our_networks_read_any_size_and_a_single_image(name: str, image_size: int) -> None:
    network = networks.build(name, classes=3, image_size=image_size).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, image_size, image_size)).shape == (1, 3)


def test_small_trains_on_a_batch_of_two_and_has_under_a_fifth_of_a_million_parameters() -> None:
    network = networks.build("small", classes=10, image_size=32)
    network(torch.randn(2, 3, 32, 32)).sum().backward()

    assert 100_000 < sum(p.numel() for p in network.parameters()) < 200_000
    assert all(p.grad is not None for p in network.parameters())


def test_residual_networks_have_the_published_number_of_parameters() -> None:
    counts = {name: networks.about(name)["parameters"] for name in OURS}

    assert counts["resnet18"] == 11_173_962  # CIFAR stem, 10 classes: the figure of every public CIFAR ResNet-18
    assert counts["resnet34"] == 21_282_122
    assert counts["preact_resnet18"] == 11_171_146 + 128  # the public figure has no BN after conv1


def test_about_reports_cost_and_none_where_32_px_cannot_be_read() -> None:
    assert networks.about("resnet18")["flops_per_image"] == pytest.approx(1.11e9, rel=0.02)
    assert networks.about("alexnet")["flops_per_image"] is None


def test_the_operations_of_a_network_are_counted_without_a_word() -> None:
    """torch's counter warns of a missing Triton, which none of our networks needs."""
    program = "from ml import networks; print(networks.about('small')['flops_per_image'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == networks.about("small")["flops_per_image"]
    assert done.stderr == ""


def test_large_images_get_the_imagenet_stem() -> None:
    small, large = (networks.build("resnet18", 10, size) for size in (64, 65))

    assert not any(isinstance(m, torch.nn.MaxPool2d) for m in small.modules())
    assert any(isinstance(m, torch.nn.MaxPool2d) for m in large.modules())


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(networks.UnknownNetwork, match="resnet18"):
        networks.build("resnet19", 10, 32)


def test_a_size_an_architecture_cannot_read_is_named() -> None:
    with pytest.raises(networks.UnknownNetwork, match="32 px"):
        networks.build("alexnet", 10, 32)


def test_pretrained_weights_are_adopted_without_a_mismatched_head(tmp_path: Path) -> None:
    from torchvision import models  # type: ignore[import-untyped]

    published = models.resnet18(weights=None)
    file = tmp_path / "resnet18.safetensors"
    save_file(published.state_dict(), file)

    network = networks.build("resnet18", 5, 32, file)
    assert torch.equal(network.last_stage.get_parameter("layer4.1.conv2.weight"), published.layer4[1].conv2.weight)
    assert torch.equal(network.body.get_parameter("conv1.weight"), published.conv1.weight)
    assert network.classifier.out_features == 5


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenet_v3_small"])
def test_pretrained_networks_keep_the_published_stem_and_others_the_resolution_of_small_images(name: str) -> None:
    """A model's network is rebuilt without its weights: it is told that they were pretrained."""

    def sides(published_stem: bool) -> int:
        network = networks.build(name, 5, 64, published_stem=published_stem).eval()
        with torch.no_grad():
            return int(network.body(torch.zeros(1, 3, 64, 64)).shape[-1])

    assert sides(published_stem=True) * 2 <= sides(published_stem=False)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"])
def test_features_with_published_weights_are_those_of_torchvision(tmp_path: Path, name: str) -> None:
    from torchvision import models

    published = models.get_model(name, weights=None).eval()
    save_file(published.state_dict(), tmp_path / "x.safetensors")
    classifier = [module for module in published.modules() if isinstance(module, torch.nn.Linear)][-1]
    features: list[torch.Tensor] = []
    classifier.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    images = torch.randn(2, 3, 64, 64)
    network = networks.build(name, 5, 64, tmp_path / "x.safetensors").eval()

    with torch.no_grad():
        published(images)
        torch.testing.assert_close(network.features(images), features[0])


@pytest.mark.slow
def test_positions_of_a_pretrained_transformer_follow_the_size_of_the_images(tmp_path: Path) -> None:
    from torchvision import models

    published = models.vit_b_32(weights=None, image_size=64)
    save_file(published.state_dict(), tmp_path / "x.safetensors")
    same, larger = (networks.build("vit_b_32", 5, side, tmp_path / "x.safetensors") for side in (64, 96))

    assert torch.equal(same.body.get_parameter("0.positions"), published.encoder.pos_embedding)
    assert larger.body.get_parameter("0.positions").shape == (1, 10, 768)


def test_a_tag_names_weights_and_not_another_architecture() -> None:
    tagged, plain = (networks.build(name, 5, 32).state_dict() for name in ("resnet18.satellite", "resnet18"))

    assert networks.architecture("resnet18.satellite") == "resnet18"
    assert {name: value.shape for name, value in tagged.items()} == {name: v.shape for name, v in plain.items()}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(networks.build("small", 10, 32).state_dict(), file)
    with pytest.raises(errors.MissingWeights, match="pretrained weights"):
        networks.build("resnet18", 10, 32, file)


@pytest.mark.parametrize("name", ["small", "preact_resnet18", "resnet18", "efficientnet_lite0", "squeezenet1_1"])
def test_required_tensors_are_those_that_are_loaded(name: str, tmp_path: Path) -> None:
    """What the catalog tells the service fits the network, and nothing less does."""
    required = networks.required_shapes(name)
    tensors = {key: torch.full(shape, 0.5) for key, shape in required.items() if shape is not None}
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    loaded = networks.build(name, 5, 64, file).state_dict()
    ours = {key: value for key, value in loaded.items() if not key.endswith("num_batches_tracked")}
    assert all(bool((value == 0.5).all()) != key.startswith("classifier.") for key, value in ours.items())
    assert len(ours) == len(tensors) + 2

    missing = list(tensors)[-1]
    save_file({key: value for key, value in tensors.items() if key != missing}, file)
    with pytest.raises(errors.MissingWeights, match=re.escape(f"{missing} (")):
        networks.build(name, 5, 64, file)


@pytest.mark.parametrize(
    "name", ["alexnet", "densenet121", "googlenet", "maxvit_t", "regnet_y_400mf", "swin_t", "vit_b_16"]
)
def test_published_architectures_have_the_required_tensors(name: str) -> None:
    from torchvision import models

    with torch.device("meta"), networks._WidthsOnCpu():
        published = models.get_model(name, weights=None, **{"init_weights": False} if name == "googlenet" else {})
    shapes = {key: tuple(tensor.shape) for key, tensor in published.state_dict().items()}

    required = networks.required_shapes(name)
    matched = tensor_shapes.match(required, shapes)

    assert {key for key, shape in required.items() if shape is not None} <= matched.keys()


@pytest.mark.parametrize(("shape", "reason"), [((2, 10, 768), "cannot be resampled"), ((1, 8, 768), "square")])
def test_positions_that_cannot_be_resampled_are_refused(shape: tuple[int, ...], reason: str, tmp_path: Path) -> None:
    save_file({"encoder.pos_embedding": torch.zeros(shape)}, tmp_path / "x.safetensors")
    with pytest.raises(errors.MissingWeights, match=reason), torch.device("meta"):
        networks.build("vit_b_32", 5, 64, tmp_path / "x.safetensors")


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    torch.save({"x": torch.zeros(1)}, file)
    with pytest.raises(errors.MissingWeights, match="safetensors"):
        networks.build("small", 10, 32, file)


def test_our_networks_and_views_leave_torchvision_alone() -> None:
    build = (
        "import sys, torch; from ml import networks; from ml.data import autoaugment; networks.build('small', 10, 32)"
    )
    view = "autoaugment.auto_augment(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.Generator())"
    code = f"{build}; {view}; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=250)
