"""Forward correction: what its two phases share, and that a known matrix needs no first phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ml import networks
from ml.data.dataset import LabeledImages
from ml.method import Phase, TrainHyperparameters
from ml.methods import forward
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.ml.conftest import CLASSES, SIDE, reports, same

Specs = Callable[..., TrainingSpec]
KNOWN = [[0.7 if i == j else 0.1 for j in range(CLASSES)] for i in range(CLASSES)]


def phases(epochs: int, **params: Any) -> list[Phase]:
    labels = torch.arange(40) % CLASSES
    method = forward.Method(forward.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))
    return list(method.phases(TrainHyperparameters(epochs, 0.05, 0.9, 5e-4, lambda progress: 1.0)))


def test_both_stages_scale_with_the_epochs() -> None:
    assert [phase.epochs for phase in phases(240)] == [120, 120]
    assert [phase.epochs for phase in phases(10, estimate=0.25)] == [2, 8]
    assert [phase.epochs for phase in phases(1)] == [1, 0]


def test_a_known_matrix_is_used_at_once(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method="forward", params={"transition": KNOWN}, epochs=1), labeled)
    list(training)

    assert [phase.name for phase in phases(10, transition=KNOWN)] == ["forward"]
    torch.testing.assert_close(training.method.get_buffer("transition"), torch.tensor(KNOWN))


@pytest.mark.parametrize("restart", [True, False])
def test_the_second_stage_has_a_new_network_in_the_old_place(
    restart: bool, spec: Specs, labeled: LabeledImages
) -> None:
    params = {"restart": restart}
    training = Trainer.build(spec(method="forward", params=params, epochs=2, validation_fraction=0.0), labeled)
    parameters = list(training.method.parameters())
    events = iter(training)
    next(event for event in events if isinstance(event, EpochReport))
    learned = {name: value.clone() for name, value in training.method.get_submodule("network").state_dict().items()}
    assert training.phases[1].optimizers is not None
    rate = training.phases[1].optimizers().groups[0]["lr"]
    assert rate == pytest.approx(training.spec.learning_rate * (1.0 if restart else 0.1))
    training.phases[1].enter(training)
    begun = training.method.get_submodule("network").state_dict()
    matrix = training.method.get_buffer("transition")

    assert list(map(id, training.method.parameters())) == list(map(id, parameters))
    assert (same(begun, learned) == []) != restart
    assert torch.allclose(matrix.sum(dim=1), torch.ones(CLASSES))
    assert not torch.equal(matrix, torch.eye(CLASSES))
    fresh = training.networks()
    training.networks.built -= 2
    assert (same(begun, training.networks().state_dict()) == []) == restart
    assert same(begun, fresh.state_dict()) != []


def test_it_hosts_denll(spec: Specs, labeled: LabeledImages) -> None:
    """Both branches are made anew, and each has its own matrix."""
    training = Trainer.build(spec(method="denll", params={"host": "forward"}, epochs=2), labeled)
    history = reports(training)

    assert [report.phase for report in history] == ["estimate", "forward"]
    one, two = (training.method.get_buffer(f"base{k}.transition") for k in (1, 2))
    assert not torch.equal(one, torch.eye(CLASSES))
    assert not torch.equal(one, two)
