"""The best weights are those of the best epoch since the phase began."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import nn

from ml.blocks import best_weights
from tests.ml.context import FixedContext


def restored_weight(accuracies: Sequence[float], since: int, epochs: int) -> float:
    """Epoch e ends with weight e + 1: the weight that is given back."""
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    copy = best_weights.BestWeights(network)
    context = FixedContext(accuracies=accuracies)
    for epoch in range(epochs + 1):
        context.epoch = epoch
        if epoch >= since:
            copy.update(context, network, since)
        nn.init.constant_(network[0].get_parameter("weight"), epoch + 1.0)
    weight = network[0].get_parameter("weight")
    nn.init.constant_(weight, -5.0)
    copy.restore(network)
    assert network[0].weight is weight
    return float(weight.detach())


@pytest.mark.parametrize(
    ("accuracies", "since", "best"),
    [([0.2, 0.6, 0.4], 0, 2), ([0.9, 0.3, 0.5, 0.4], 1, 3), ([0.5, 0.5], 0, 2), ([0.1, 0.2, 0.3], 0, 3)],
)
def test_the_best_epoch_since_the_phase_began_is_restored(accuracies: list[float], since: int, best: int) -> None:
    """Of equals the later; what an earlier phase reached does not count."""
    assert restored_weight(accuracies, since, len(accuracies)) == best


def test_where_nothing_is_held_out_the_last_epoch_is_restored() -> None:
    assert restored_weight([], 0, 4) == 4


def test_a_copy_has_the_networks_state_and_no_parameter() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    copy = best_weights.BestWeights(network)

    assert list(copy.parameters()) == []
    assert {name: value.shape for name, value in copy.named_buffers() if name != "best"} == {
        name.replace(".", "/"): value.shape for name, value in network.state_dict().items()
    }
