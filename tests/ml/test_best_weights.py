"""The best weights are those of the best epoch since the phase began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ml import method
from ml.blocks import best_weights


class Context:
    """A context that knows how well every epoch did."""

    def __init__(self, accuracies: Sequence[float]) -> None:
        self.accuracies = accuracies
        self.epoch, self.epochs = 0, 10

    def generator(self, concern: str) -> torch.Generator:
        return method.no_generator(concern)

    def noisy_accuracies(self) -> Sequence[float]:
        return self.accuracies[: self.epoch]

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        raise LookupError("nothing to score")


def restored_weight(accuracies: Sequence[float], since: int, epochs: int) -> float:
    """Epoch e ends with weight e + 1: the weight that is given back."""
    network = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    copy = best_weights.BestWeights(network)
    context: Any = Context(accuracies)
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
