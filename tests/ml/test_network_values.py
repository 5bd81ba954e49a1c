"""Our own networks compute what they did when their golden values were written, and PreAct what the literature does.

Golden values are logits in double precision: a change of structure, of order of operations or of initialisation shows.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml import networks
from ml.data import dataset
from ml.networks import preact
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
        [0.000552852121757, -0.012256272929, -0.142916487394],
        [0.0441276562044, -0.0451227566783, -0.147176280559],
    ],
    ("resnet18", 96): [
        [-0.148588091168, 0.010714258778, 0.181223884246],
        [-0.134018350118, 0.00685009311194, 0.176474228284],
    ],
    ("resnet34", 32): [[-1.90702740853, 4.9282355055, 1.10246995425], [-2.12909315759, 4.80297473866, 1.34525970942]],
    ("preact_resnet18", 32): [
        [0.0185002042827, 0.0142857044123, -0.064364516689],
        [0.0325083955606, 0.0181856210124, -0.0642150240817],
    ],
    ("preact_resnet18", 96): [
        [-0.136651106439, -0.0459160766406, 0.192598341518],
        [-0.1046977477, -0.0395319666231, 0.173966107628],
    ],
}
# by the version that had the identities of He et al., in single precision
FORMER_PREACT = [[0.019407, 0.070674, -0.111727], [0.059597, 0.055907, -0.149615]]


def pictures(side: int, count: int = 4) -> Tensor:
    """The same images everywhere: (count, 3, side, side), f32."""
    return (torch.arange(count * 3 * side**2, dtype=torch.float64) * 0.7).sin().float().view(count, 3, side, side)


def seeded(name: str, side: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build(name, CLASSES, side)


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
    former = seeded("preact_resnet18", 32)
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
