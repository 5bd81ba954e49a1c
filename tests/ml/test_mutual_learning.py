"""The agreement term: its value, its direction and its schedule."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ml.blocks import losses, mutual_learning, schedules
from ml.blocks.mutual_learning import AgreementParams
from ml.methods import ce

Z, OTHER = torch.tensor([[2.0, 0, -1], [0, 1, 0.5]]), torch.tensor([[1.0, 0.5, -0.5], [0.2, 0.1, 1]])
LABELS = torch.tensor([0, 2])


def test_cross_entropy_and_agreement_have_the_reference_values() -> None:
    """A worked example: CE 0.6751; JoCoR at λ = 0.9 is 0.1 (CE1 + CE2) + 0.9 symKL, [0.4787, 0.5269] per sample."""
    jocor = 0.1 * (losses.cross_entropy(Z, LABELS) + losses.cross_entropy(OTHER, LABELS))
    jocor = jocor + 0.9 * losses.symmetric_kl(Z, OTHER)

    assert float(losses.cross_entropy(Z, LABELS)) == pytest.approx(0.6751, abs=1e-4)
    assert float(jocor) == pytest.approx((0.4787 + 0.5269) / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "probabilities", "cross_entropy", "symmetric_kl"),
    [(0, [0.8438, 0.1142, 0.0420], 0.1698, 0.4459), (1, [0.1863, 0.5065, 0.3072], 1.1803, 0.3856)],
)
def test_every_row_has_the_reference_values(
    row: int, probabilities: list[float], cross_entropy: float, symmetric_kl: float
) -> None:
    """A worked example in float64; KL(p‖q) + KL(q‖p) spelled out by its definition."""
    z, other, label = Z[row : row + 1], OTHER[row : row + 1], LABELS[row : row + 1]
    p, q = (logits.double().softmax(dim=1) for logits in (z, other))
    by_definition = float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())

    assert p[0].tolist() == pytest.approx(probabilities, abs=1e-4)
    assert float(losses.cross_entropy(z, label)) == pytest.approx(cross_entropy, abs=1e-4)
    assert float(losses.symmetric_kl(z, other)) == pytest.approx(by_definition, rel=1e-5)
    assert by_definition == pytest.approx(symmetric_kl, abs=1e-4)


def test_losses_are_f32_whatever_comes_in() -> None:
    half = Z.bfloat16()

    assert losses.cross_entropy(half, LABELS).dtype == losses.symmetric_kl(half, half).dtype == torch.float32


@pytest.mark.parametrize(("direction", "second_learns"), [("both", True), ("one_way", False)])
def test_one_way_leaves_the_second_network_alone(direction: str, second_learns: bool) -> None:
    first, second = Z.clone().requires_grad_(), OTHER.clone().requires_grad_()
    term = mutual_learning.agreement_loss(direction, first, second)
    torch.autograd.backward(term)

    assert float(term.detach()) == pytest.approx(float(losses.symmetric_kl(Z, OTHER)))
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert (second.grad is not None) == second_learns


def test_the_weight_starts_ramps_and_stays() -> None:
    params = AgreementParams(agreement="both", agreement_weight=3.0, agreement_start=0.2, agreement_ramp=0.3)

    weights = [mutual_learning.agreement_weight(params, epoch, 10) for epoch in range(10)]

    assert weights == [0, 0, 1, 2, 3, 3, 3, 3, 3, 3]


def test_one_network_has_nobody_to_agree_with() -> None:
    with pytest.raises(ValidationError, match="networks = 2"):
        ce.Params(agreement="both")


def test_schedules_begin_at_one_and_never_grow() -> None:
    for name in ("cosine", "multistep", "constant"):
        factor = schedules.by_name(name, milestones=(0.5, 0.75), decay=0.1, floor=0.01)
        values = [factor(step / 100) for step in range(100)]
        assert values[0] == 1.0, name
        assert values == sorted(values, reverse=True), name


def test_milestones_are_shares_of_the_epochs_to_the_epoch() -> None:
    factor = schedules.by_name("multistep", milestones=(1 / 3, 2 / 3), decay=0.1, floor=0.0)
    rates = [factor(epoch / 120) for epoch in (39, 40, 79, 80)]

    assert rates == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_a_cosine_ends_at_its_floor() -> None:
    assert schedules.cosine(1.0, floor=0.01) == pytest.approx(0.01)
