"""Our own networks compute what they did when their golden values were written, and PreAct what the literature does.

Golden values are logits in double precision: a change of structure, of order of operations or of initialisation shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml import networks
from ml.data import dataset
from ml.networks import chain, preact
from ml.scenes import generate
from ml.serving import model_archive
from ml.serving.predictor import Predictor
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

CLASSES = 3
GOLDEN = {  # logits of two images
    ("small", 32): [
        [0.0276716106621, -0.0340932389041, -0.00451863147654],
        [0.035596713687, -0.00937538204004, -0.00277121737505],
    ],
    ("small", 96): [
        [0.10369253125, -0.0817787659805, 0.0021617134024],
        [0.103280679475, -0.0787511074267, 0.000679566445658],
    ],
    ("resnet18", 32): [
        [-0.00189818068645, 0.0335997793499, -0.00594383929051],
        [-0.00175626686702, 0.0387898205747, -0.00324613350678],
    ],
    ("resnet18", 96): [
        [-0.0248752098824, 0.00279430692436, 0.0314765366278],
        [-0.0250531533085, 0.00156661358381, 0.0320717228765],
    ],
    ("resnet34", 32): [
        [-0.0208289361954, 0.00580098039772, 0.0568625127226],
        [-0.0203804213329, 0.0066773714143, 0.0553548441211],
    ],
    ("preact_resnet18", 32): [
        [-0.00299503013454, 0.0409981430558, -0.00583693984555],
        [-0.00500364758294, 0.0435896841144, -0.00296195645861],
    ],
    ("preact_resnet18", 96): [
        [-0.0249481546614, 0.0091013593175, 0.0237234881039],
        [-0.0255336864746, 0.00845106378009, 0.0233918240591],
    ],
}
# by the version that had the identities and the initialisation of He et al., in single precision
FORMER_PREACT = [[0.019407, 0.070674, -0.111727], [0.059597, 0.055907, -0.149615]]


def pictures(side: int, count: int = 4) -> Tensor:
    """The same images everywhere: (count, 3, side, side), f32."""
    return (torch.arange(count * 3 * side**2, dtype=torch.float64) * 0.7).sin().float().view(count, 3, side, side)


def seeded(name: str, side: int, initialise: Callable[[nn.Module], None] = lambda _: None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build(name, CLASSES, side)
        initialise(network)
    return network


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """Of the first two images, after one pass in training mode has moved the running statistics."""
    with torch.no_grad():
        network.train()(images)
        predicted: Tensor = network.eval()(images[:2])
    return predicted


@pytest.mark.parametrize(("name", "side"), GOLDEN)
def test_a_seeded_network_has_its_golden_logits(name: str, side: int) -> None:
    predicted = logits(seeded(name, side).double(), pictures(side).double())

    assert torch.allclose(predicted, torch.tensor(GOLDEN[name, side], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def reference(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """PreAct ResNet-18 as released with DivideMix, SOP and PES, in evaluation mode, written from its equations."""

    def norm_relu(x: Tensor, name: str) -> Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return functional.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu()

    x = norm_relu(functional.conv2d(images, weights["body.conv1.weight"], padding=1), "body.bn1")
    for stage in range(1, 5):
        for block in range(2):
            name = f"{'last_stage' if stage == 4 else 'body'}.layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            active = norm_relu(x, f"{name}.bn1")
            shortcut = active
            if f"{name}.shortcut.weight" in weights:
                shortcut = functional.conv2d(active, weights[f"{name}.shortcut.weight"], stride=stride)
            x = functional.conv2d(active, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            x = functional.conv2d(norm_relu(x, f"{name}.bn2"), weights[f"{name}.conv2.weight"], padding=1) + shortcut
    return functional.avg_pool2d(x, 4).flatten(1) @ weights["classifier.weight"].T + weights["classifier.bias"]


def test_preact_is_that_of_the_literature() -> None:
    network, images = seeded("preact_resnet18", 32), pictures(32)
    predicted = logits(network, images)

    assert (reference(network.state_dict(), images[:2]) - predicted).abs().max() < 1e-7


def test_a_published_preact_model_of_archive_format_1_predicts_as_it_did(tmp_path: Path) -> None:
    """Its structure was that of He et al., and its manifest knows no field that the spec has been given since."""
    former = seeded("preact_resnet18", 32, chain.initialise)
    preact.use_identities_from_input(former)
    assert torch.allclose(logits(former, pictures(32)), torch.tensor(FORMER_PREACT), atol=2e-6)

    drawn = generate.draw(16, seed=1, image_size=16)
    images = dataset.LabeledImages(
        torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES
    )
    spec = TrainingSpec(method="ce", network="preact_resnet18", image_size=16, epochs=1, batch_size=16, precision="f32")
    training = Trainer.build(spec, images, device="cpu", threads=1)
    for _ in training:
        pass
    model_archive.save(tmp_path / "model", training)
    file = tmp_path / "model" / model_archive.MANIFEST
    document = json.loads(file.read_text()) | {"format": 1}
    del document["spec"]["floor"]  # as if it were new
    file.write_text(json.dumps(document | {"digest": model_archive.compute_digest(document)}))

    preact.use_identities_from_input(training.method)
    count = len(training.batches)
    with torch.no_grad():
        expected = training.method.eval().logits(training.batches.unaugmented(count)).softmax(dim=1)
    squares = list(training.batches.sample(count).numpy())
    predicted = Predictor.load(tmp_path / "model", device="cpu", precision="f32").predict_squares(squares)

    assert torch.allclose(torch.stack([torch.from_numpy(p.probabilities) for p in predicted]), expected, atol=1e-6)
    preact_now = networks.build("preact_resnet18", CLASSES, 16)
    assert not any(m.identity_from_input for m in preact_now.modules() if isinstance(m, preact.Block))
