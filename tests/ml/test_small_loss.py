"""Small-loss selection: how many, which, and from when."""

from __future__ import annotations

import pytest
import torch

from ml.blocks import small_loss


def test_the_forget_rate_grows_in_equal_steps_and_then_stays() -> None:
    """R(t) of Co-teaching at 45 % noise, full after the published 10 epochs."""
    rates = [small_loss.forget_rate(epoch, 0.45, 10) for epoch in range(12)]

    assert rates == pytest.approx([0.05 * t for t in range(10)] + [0.45, 0.45])
    assert [small_loss.forget_rate(epoch, 0.3, 1) for epoch in range(3)] == [0.0, 0.3, 0.3]


@pytest.mark.parametrize(
    ("rate", "size", "count"), [(0.0, 128, 128), (0.45, 128, 70), (0.45, 100, 55), (0.2, 10, 8), (0.95, 8, 1)]
)
def test_a_share_is_rounded_down_and_something_is_kept(rate: float, size: int, count: int) -> None:
    assert small_loss.selected_count(rate, size) == count


def test_the_smallest_losses_are_chosen_without_a_gradient() -> None:
    losses = torch.tensor([3.0, 0.5, 2.0, 1.0, 4.0], requires_grad=True)
    chosen = small_loss.smallest_losses(losses, 0.4)

    assert sorted(chosen.tolist()) == [1, 2, 3]
    losses[chosen].sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0, 1, 1, 1, 0]
