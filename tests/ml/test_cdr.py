"""CDR: which gradients are masked, and that without noise it is plain training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ml import networks
from ml.data.dataset import LabeledImages
from ml.methods import cdr
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import CLASSES, SIDE, same

Specs = Callable[..., TrainingSpec]


def test_without_noise_it_is_plain_training(spec: Specs, labeled: LabeledImages) -> None:
    ends = []
    for method, params in (("ce", {}), ("cdr", {"noise_rate": 0.0})):
        training = Trainer.build(spec(method=method, params=params, epochs=2), labeled)
        list(training)
        state = training.method.state_dict()
        ends.append({name.replace("networks.0.", "network."): value for name, value in state.items()})

    assert same(ends[0], ends[1]) == []


@pytest.mark.parametrize("rate", [0.2, 0.45, 0.9])
def test_the_share_of_critical_weights_is_global_and_their_gradient_shrinks(rate: float) -> None:
    torch.manual_seed(0)
    network = networks.build("small", CLASSES, SIDE)
    network(torch.randn(8, 3, SIDE, SIDE)).square().sum().backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    cdr.keep_critical(network.parameters(), rate)
    weights = {name: p for name, p in network.named_parameters() if p.dim() in (2, 4)}
    scores = torch.cat([(p.detach() * before[name]).abs().flatten() for name, p in weights.items()])
    masked = torch.cat([p.grad.flatten() for p in weights.values() if p.grad is not None])
    plain = torch.cat([before[name].flatten() for name in weights])
    alive = masked != 0

    assert int(alive.sum()) == int((1 - rate) * len(scores) + 1e-9)
    assert float(scores[alive].min()) >= float(scores[~alive].max())
    torch.testing.assert_close(masked[alive], plain[alive] * (1 - rate))
    others = [name for name in before if name not in weights]
    assert len(others) > 0
    assert all(
        gradient is not None and torch.equal(before[name], gradient)
        for name in others
        for gradient in [network.get_parameter(name).grad]
    )


def test_parameters_that_rest_have_no_say() -> None:
    layer = torch.nn.Linear(3, 2)
    frozen = torch.nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    cdr.keep_critical([*frozen.parameters(), *layer.parameters()], 0.5)

    assert layer.weight.grad is not None
    assert int((layer.weight.grad != 0).sum()) == 3
    assert frozen.weight.grad is None
