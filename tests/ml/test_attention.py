"""Attention: recording changes no prediction, and untrained networks find what differs from the border."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ml import networks
from ml.data.dataset import LabeledImages
from ml.evaluation import attention
from ml.method import Method, Network
from ml.scenes import generate
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import SIDE


class OneNetwork(Method):
    """One network and nothing else."""

    def __init__(self, network: Network) -> None:
        torch.nn.Module.__init__(self)
        self.network = network

    def logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def untrained(name: str, side: int) -> OneNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OneNetwork(networks.build(name, 6, side)).eval()


@pytest.mark.parametrize("method", ["ce", "dividemix", "denll"])
def test_recording_activations_changes_no_prediction(
    method: str, spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    trained = Trainer.build(spec(method=method), labeled, device="cpu", threads=1).method.eval()
    images = torch.randn(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in trained.modules()]
    with torch.no_grad():
        before = trained.logits(images)
        with attention.record_activations(trained) as passes:
            during = trained.logits(images)
        features = attention.representation(trained, images)

    assert torch.equal(before, during)
    assert len(passes) == (1 if method == "ce" else 2)
    assert all(one.maps is not None and one.maps.shape[0] == 5 for one in passes)
    assert features.shape[0] == 5
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in trained.modules()]


def test_passes_of_other_threads_are_not_recorded() -> None:
    """The service predicts several batches side by side, some of them with maps."""
    method = untrained("small", 32)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def predict() -> torch.Tensor:
        with torch.no_grad():
            return method.logits(images[:1])

    with ThreadPoolExecutor(1) as other, torch.no_grad(), attention.record_activations(method) as passes:
        other.submit(predict).result()
        method.logits(images)
        other.submit(predict).result()

    assert [[len(stage) for stage in one.stages] for one in passes] == [[3] * len(passes[0].stages)]


def test_grad_cam_leaves_no_gradient_behind() -> None:
    method = untrained("small", 32)
    maps = attention.grad_cam(method, torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    assert maps is not None
    assert maps.shape == (3, 1, 4, 4)
    assert not maps.requires_grad
    assert all(parameter.grad is None for parameter in method.parameters())


def test_an_object_stands_out_without_training_and_wherever_it_is() -> None:
    """An untrained network's border contrast lies on a bright square in a noisy picture."""
    method = untrained("small", 32)
    generator = torch.Generator().manual_seed(1)
    images = 0.2 * torch.randn(24, 3, 32, 32, generator=generator)
    corners = torch.randint(4, 20, (24, 2), generator=generator).tolist()
    for image, (top, left) in zip(images, corners, strict=True):
        image[:, top : top + 8, left : left + 8] += 3.0
    with torch.no_grad(), attention.record_activations(method) as passes:
        method.logits(images)
    maps = attention.border_contrast(passes)
    assert maps is not None
    large = torch.nn.functional.interpolate(maps, (32, 32), mode="bilinear")[:, 0]
    peaks = large.flatten(1).argmax(dim=1)

    assert large.amax(dim=(1, 2)).allclose(torch.ones(24), atol=0.05)
    distances = [
        max(abs(int(peak) // 32 - top - 3.5), abs(int(peak) % 32 - left - 3.5))
        for peak, (top, left) in zip(peaks, corners, strict=True)
    ]
    assert sum(distance <= 6 for distance in distances) >= 20


def test_an_image_has_its_own_map_whatever_its_batch() -> None:
    method = untrained("small", 32)
    drawn = generate.draw(6, seed=3)
    images = torch.from_numpy(drawn.images).permute(0, 3, 1, 2).float() / 255
    maps = []
    for batch in (images, images[2:3]):
        with torch.no_grad(), attention.record_activations(method) as passes:
            method.logits(batch)
        maps.append(attention.border_contrast(passes))

    assert maps[0] is not None
    assert maps[1] is not None
    torch.testing.assert_close(maps[0][2:3], maps[1], rtol=1e-3, atol=1e-4)


def test_networks_without_feature_maps_have_no_map() -> None:
    assert (
        attention.border_contrast([attention.NetworkActivations(untrained("small", 32).network, [torch.zeros(2, 7)])])
        is None
    )
