"""T-revision: when the matrix is estimated, when it is revised, and where gradients flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from ml import networks
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import t_revision
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.ml.conftest import CLASSES, SIDE

Specs = Callable[..., TrainingSpec]
KNOWN = [[0.7 if i == j else 0.1 for j in range(CLASSES)] for i in range(CLASSES)]


def made(**params: Any) -> t_revision.Method:
    torch.manual_seed(0)
    labels = torch.arange(40) % CLASSES
    return t_revision.Method(t_revision.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: t_revision.Method, epochs: int = 16) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.05, 0.9, 5e-4, lambda progress: 1.0)))


def batch() -> Batch:
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Batch((images,), torch.arange(16) % CLASSES, torch.arange(16), lambda _: None)


@pytest.mark.parametrize(
    ("epochs", "params", "expected"),
    [
        (16, {}, [4, 6, 6]),
        (420, t_revision.ABOUT["presets"]["cifar10"], [20, 200, 200]),
        (415, t_revision.ABOUT["presets"]["cifar100"], [15, 200, 200]),
        (16, {"transition": KNOWN}, [0, 10, 6]),
        (3, {}, [1, 1, 1]),
        (1, {}, [1, 0, 0]),
    ],
)
def test_phases_scale_with_the_epochs(epochs: int, params: dict[str, Any], expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(**params), epochs)] == expected


def test_shares_that_leave_nothing_to_weigh_are_refused() -> None:
    with pytest.raises(pydantic.ValidationError):
        t_revision.Params(estimate=0.5, revise=0.5)


def gradients(method: t_revision.Method, number: int) -> tuple[Tensor | None, Tensor]:
    """Of ΔT and of the classifier."""
    method.zero_grad()
    phases(method)[number].loss(batch()).backward()
    grad = method.network.classifier.get_parameter("weight").grad
    assert grad is not None
    return method.slack.grad, grad.clone()


def test_the_slack_learns_in_the_last_phase_and_weights_have_a_gradient_only_there() -> None:
    """With ΔT still 0 the two losses are one number; what differs is the gradient through β."""
    method = made(transition=KNOWN).eval()
    weighted, revised = (float(phases(method)[number].loss(batch()).detach()) for number in (1, 2))
    (no_slack, constant), (slack, flowing) = gradients(method, 1), gradients(method, 2)

    assert weighted == pytest.approx(revised)
    assert no_slack is None
    assert slack is not None
    assert float(slack.abs().min()) > 0
    assert not torch.allclose(constant, flowing)


def test_the_matrix_is_estimated_once_and_the_slack_moves_at_its_own_rate(spec: Specs, labeled: LabeledImages) -> None:
    """Adam's first steps are as long as its rate, whatever the training's learning rate."""
    settings = spec(method="t_revision", epochs=4, params={"estimate": 0.25, "revise": 0.5, "revise_rate": 1e-4})
    training = Trainer.build(settings, labeled)
    seen = []
    for event in training:
        if isinstance(event, EpochReport):
            slack = training.method.get_parameter("slack").detach().abs().max()
            seen.append((training.method.get_buffer("transition").clone(), float(slack), event.learning_rate))
    matrices, slacks, rates = zip(*seen, strict=True)

    assert torch.equal(matrices[0], torch.eye(CLASSES))
    assert not torch.equal(matrices[1], matrices[0])
    assert torch.equal(matrices[1], matrices[3])
    assert slacks[:2] == (0.0, 0.0)
    assert slacks[2] == pytest.approx(3e-4, rel=0.1)  # three steps
    assert rates[2:] == pytest.approx((1e-4, 1e-4))
