"""Joint optimisation: its loss, when labels are replaced and by what; retraining sees the learned labels alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ml import networks
from ml.blocks import losses, schedules
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import joint_optim
from tests.ml.conftest import CLASSES, SIDE

COUNT = 12


def made(**params: Any) -> joint_optim.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return joint_optim.Method(joint_optim.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: joint_optim.Method, epochs: int = 320) -> list[Phase]:
    multistep = schedules.by_name("multistep", milestones=(1 / 3, 2 / 3), decay=0.1, floor=0.0)
    return list(method.phases(TrainHyperparameters(epochs, 0.08, 0.9, 1e-4, multistep)))


def batch(epoch: int) -> Batch:
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(epoch))
    return Batch((images,), torch.arange(COUNT) % CLASSES, torch.arange(COUNT), lambda _: None, epoch)


def test_the_loss_has_the_reference_value() -> None:
    """A worked example in float64: one-hot labels, α 1.2, β 0.8."""
    logits = torch.tensor([[2.0, 0, -1], [0, 1, 0.5]])
    loss = joint_optim.joint_loss(logits, losses.one_hot(torch.tensor([0, 2]), 3), 1.2, 0.8)

    assert float(loss) == pytest.approx(2.7244, abs=1e-4)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(320, [70, 130, 120]), (10, [2, 4, 4]), (3, [1, 1, 1]), (2, [1, 1]), (1, [1])]
)
def test_stages_scale_with_the_epochs(epochs: int, expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(), epochs)] == expected


def test_labels_become_the_mean_of_the_last_answers_seen_in_training() -> None:
    method = made(averaged_epochs=2)
    method.train()
    first_phase, learned, _ = phases(method)
    answers: list[Tensor] = []
    for epoch in range(3):
        first_phase.loss(batch(epoch))
        with torch.no_grad():
            answers.append(method.network(batch(epoch).images).softmax(dim=1))
    assert torch.equal(method.targets, losses.one_hot(torch.arange(COUNT) % CLASSES, CLASSES))
    learned.begin_epoch(None)  # type: ignore[arg-type]

    torch.testing.assert_close(method.targets, (answers[1] + answers[2]) / 2)
    torch.testing.assert_close(method.targets.sum(dim=1), torch.ones(COUNT))


def test_the_second_stage_is_a_fresh_network_on_the_learned_labels_alone() -> None:
    method = made()
    method.train()
    first_phase, _, last = phases(method)
    first_phase.loss(batch(0))
    before = [p.detach().clone() for p in method.network.parameters()]
    last.enter(None)  # type: ignore[arg-type]
    weights = [p for p in method.network.parameters() if p.dim() > 1]

    assert not any(torch.equal(new, old) for new, old in zip(weights, (b for b in before if b.dim() > 1), strict=True))
    remembered = method.predictions.values.clone()
    outcomes = []
    for shift in (0, 1):
        seen = batch(250)
        labels = (seen.labels + shift) % CLASSES
        outcomes.append(float(last.loss(Batch(seen.views, labels, seen.index, seen.record_logits, 250)).detach()))
    assert outcomes[0] == outcomes[1]
    assert torch.equal(method.predictions.values.nan_to_num(), remembered.nan_to_num())


def test_the_first_stage_keeps_its_rate_and_the_second_follows_the_schedule() -> None:
    first_phase, learned, last = phases(made())
    assert first_phase.optimizers is not None
    assert last.optimizers is not None
    first, second = first_phase.optimizers(), last.optimizers()

    assert learned.optimizers is None
    assert first.factor(0.0) == first.factor(0.99) == 1.0
    assert first.groups[0]["lr"] == pytest.approx(0.08)
    assert second.groups[0]["lr"] == pytest.approx(0.2)
    assert [second.factor(epoch / 120) for epoch in (0, 39, 40, 80)] == pytest.approx([1, 1, 0.1, 0.01])
