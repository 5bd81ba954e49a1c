"""ELR: the reference's values, what an average remembers, and cross-entropy where it does not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ml.blocks import early_learning, losses, prediction_history
from ml.data.dataset import LabeledImages
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer

Specs = Callable[..., TrainingSpec]
LOGITS = torch.tensor([[2, 0, -1], [0, 1, 0.5]])
LABELS = torch.tensor([0, 2])


def test_two_calls_on_one_batch_give_the_references_values() -> None:
    average = prediction_history.PredictionEma(5, 3, momentum=0.7)
    index = torch.tensor([4, 1])
    p = early_learning.clipped_softmax(LOGITS)
    totals = [
        losses.cross_entropy(LOGITS, LABELS) + 3 * early_learning.regularization(p, average.update(index, p))
        for _ in range(2)
    ]

    assert [round(float(total), 4) for total in totals] == [0.1217, -0.3480]
    expected = torch.tensor([[0.4303, 0.0582, 0.0214], [0.0950, 0.2583, 0.1567]])
    torch.testing.assert_close(average.values[index], expected, rtol=0, atol=5e-5)
    assert average.values[[0, 2, 3]].eq(0).all()


def test_held_answers_stay_finite_when_the_network_is_certain() -> None:
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]], requires_grad=True)
    p = early_learning.clipped_softmax(logits)
    held = early_learning.regularization(p, (p / p.sum(dim=1, keepdim=True)).detach())
    held.backward()

    assert torch.isfinite(held)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_regularisation_pulls_towards_the_running_average() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    remembered = torch.tensor([[0.1, 0.8, 0.1]])
    early_learning.regularization(early_learning.clipped_softmax(logits), remembered).backward()

    assert logits.grad is not None
    assert logits.grad.argmin() == 1


def test_without_weight_it_is_cross_entropy(spec: Specs, labeled: LabeledImages) -> None:
    plain = Trainer.build(spec(epochs=2, batch_size=48), labeled)
    held = Trainer.build(spec(method="elr", params={"weight": 0.0}, epochs=2, batch_size=48), labeled)
    list(plain)
    list(held)

    for one, other in zip(plain.method.parameters(), held.method.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_average_never_seen_twice_is_the_answer_times_what_is_new(momentum: float) -> None:
    average = prediction_history.PredictionEma(2, 3, momentum)
    p = early_learning.clipped_softmax(LOGITS)

    torch.testing.assert_close(average.update(torch.arange(2), p), (1 - momentum) * p)
