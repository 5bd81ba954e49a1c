"""What methods build their optimizers with."""

from __future__ import annotations

import pytest
import torch

from ml.method import TrainHyperparameters


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_may_get_its_first_gradient_late(momentum: float) -> None:
    """As one that is frozen at first; each moves as torch's plain kind moves it."""
    recipe = TrainHyperparameters(
        epochs=1, learning_rate=0.1, momentum=momentum, weight_decay=0.01, factor=lambda progress: 1.0
    )
    ours, plain = ([torch.nn.Parameter(torch.ones(size)) for size in (3, 2)] for _ in range(2))
    optimizers = recipe.sgd(ours), torch.optim.SGD(plain, lr=0.1, momentum=momentum, weight_decay=0.01)
    for step in range(3):
        for (first, late), optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            (first.square().sum() + (late.square().sum() if step else 0.0)).backward()
            optimizer.step()

    for own, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(own, other)
