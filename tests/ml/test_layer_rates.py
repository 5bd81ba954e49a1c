"""Layer-wise learning rates: the same rule for every method's optimisers, and none without the setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ml.data.dataset import LabeledImages
from ml.method import Network
from ml.training import layer_rates
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import same

Specs = Callable[..., TrainingSpec]


def rates(training: Trainer) -> dict[str, float]:
    """The learning rate of every parameter that is trained, by name."""
    by_parameter = {id(p): group["lr"] for group in training.optimizers.groups for p in group["params"]}
    named = training.method.named_parameters()
    return {name: by_parameter[id(parameter)] for name, parameter in named if id(parameter) in by_parameter}


def started(spec: TrainingSpec, images: LabeledImages) -> Trainer:
    training = Trainer.build(spec, images)
    training.begin_epoch()
    return training


def test_depth_counts_modules_from_the_classifier_to_the_stem(spec: Specs, labeled: LabeledImages) -> None:
    training = started(spec(network="resnet18"), labeled)
    depths = layer_rates.parameter_depths(training.method)
    by_name = {name.removeprefix("networks.0."): depths[p] for name, p in training.method.named_parameters()}

    assert len(depths) == len(by_name)
    for part, depth in {
        "classifier.weight": 0, "last_stage.layer4.0.conv1.weight": 1, "body.layer3.0.conv1.weight": 2,
        "body.layer1.1.bn2.bias": 4, "body.bn1.weight": 5, "body.conv1.weight": 6,
    }.items():  # fmt: skip
        assert by_name[part] == depth


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ce", {}), ("co_teaching", {}), ("sop", {}), ("elr_plus", {}), ("pes", {"warm_up": 0.34}),
        ("denll", {"host": "sop"}),
    ],
)  # fmt: skip
def test_every_optimiser_of_a_method_follows_it(
    method: str, params: dict[str, Any], spec: Specs, labeled: LabeledImages
) -> None:
    """The rates are those without the setting times the decay to the power of the depth, for SGD and Adam alike."""
    plain, decayed = (started(spec(method=method, params=params, layer_decay=d), labeled) for d in (1.0, 0.5))
    depths = layer_rates.parameter_depths(decayed.method)
    before, after = rates(plain), rates(decayed)
    parameters = dict(decayed.method.named_parameters())

    assert before.keys() == after.keys()
    assert len(set(after.values())) >= 4
    for name, rate in after.items():
        assert rate == pytest.approx(before[name] * 0.5 ** depths.get(parameters[name], 0))


def test_what_is_part_of_no_network_keeps_its_rate(spec: Specs, labeled: LabeledImages) -> None:
    plain, decayed = (rates(started(spec(method="sop", layer_decay=d), labeled)) for d in (1.0, 0.5))

    assert [name for name in plain if plain[name] == decayed[name]] == [
        "network.classifier.weight", "network.classifier.bias", "variables.u", "variables.v",
    ]  # fmt: skip


def test_the_schedule_moves_all_rates_together(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(layer_decay=0.5, epochs=2), labeled)
    ratios = []
    for event in training:
        if isinstance(event, Step):
            values = sorted(set(rates(training).values()))
            ratios.append([value / values[-1] for value in values])

    assert all(torch.allclose(torch.tensor(row), torch.tensor(ratios[0])) for row in ratios)
    assert training.optimizers.groups[0]["lr"] == max(group["lr"] for group in training.optimizers.groups)


def test_a_training_resumes_exactly(spec: Specs, labeled: LabeledImages) -> None:
    settings = spec(method="co_teaching", layer_decay=0.7, epochs=2)
    whole = Trainer.build(settings, labeled)
    states = [whole.state() for event in whole if isinstance(event, Step)]
    resumed = Trainer.build(settings, labeled)
    resumed.restore(states[2])
    list(resumed)

    assert same(whole.state().tensors, resumed.state().tensors) == []


def test_early_layers_move_less(spec: Specs, labeled: LabeledImages) -> None:
    """By a decay so strong that only classifier and last stage learn."""
    training = Trainer.build(spec(layer_decay=1e-6, epochs=1, weight_decay=0.0), labeled)
    (network,) = (module for module in training.method.modules() if isinstance(module, Network))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    list(training)

    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in network.named_parameters()}
    assert max(value for name, value in moved.items() if name.startswith("body")) < 1e-6
    assert moved["classifier.weight"] > 1e-3
