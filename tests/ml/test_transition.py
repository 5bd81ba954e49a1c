"""The transition matrix: its estimate by anchor points, its effect on a loss, which matrices are refused."""

from __future__ import annotations

import pydantic
import pytest
import torch

from ml import errors
from ml.blocks import losses, transition

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
LABELS = torch.tensor([0, 2])
PAIRFLIP = torch.tensor([[0.55, 0.45, 0.0], [0.0, 0.55, 0.45], [0.45, 0.0, 0.55]])


def test_the_published_formulas_give_their_values() -> None:
    weights = transition.importance_weights(LOGITS, LABELS, PAIRFLIP)

    assert float(transition.forward_cross_entropy(LOGITS, LABELS, PAIRFLIP)) == pytest.approx(0.8259, abs=5e-5)
    torch.testing.assert_close(weights, torch.tensor([1.7470, 0.7740]), atol=5e-5, rtol=0)
    assert float((weights * losses.cross_entropies(LOGITS, LABELS)).mean()) == pytest.approx(0.6051, abs=5e-5)


def test_without_mistakes_forward_is_cross_entropy_and_all_weigh_the_same() -> None:
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(64) % 10

    plain = losses.cross_entropy(logits, labels)
    torch.testing.assert_close(transition.forward_cross_entropy(logits, labels, torch.eye(10)), plain)
    torch.testing.assert_close(transition.importance_weights(logits / 5, labels, torch.eye(10)), torch.ones(64))


def test_anchor_points_tell_the_matrix() -> None:
    """Images that are surely of their class answer with its row of T; what lies between them says nothing."""
    clean = torch.cat([torch.eye(3), torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=1)])

    torch.testing.assert_close(transition.estimate_matrix(clean @ PAIRFLIP), PAIRFLIP)


def test_outliers_are_set_aside_for_their_class_and_stay_whole_for_the_others() -> None:
    """Of 100 images, three are surer of class 0 than the anchor; class 1 is told by one of the three."""
    probabilities = torch.full((100, 3), 0.1)
    probabilities[:, 2] = torch.linspace(0.2, 0.9, 100)
    probabilities[10] = torch.tensor([0.6, 0.3, 0.1])
    probabilities[[20, 30, 40]] = torch.tensor([[0.9, 0.05, 0.05], [0.92, 0.04, 0.04], [0.8, 0.2, 0.0]])

    assert transition.estimate_matrix(probabilities, 1.0)[0].tolist() == pytest.approx([0.92, 0.04, 0.04])
    assert transition.estimate_matrix(probabilities, 0.97)[0].tolist() == pytest.approx([0.6, 0.3, 0.1])
    probabilities[50:54, 1] = 0.9
    probabilities[40, 1] = 0.8
    row = transition.estimate_matrix(probabilities, 0.96)[1]
    assert row.tolist() == pytest.approx((probabilities[40] / probabilities[40].sum()).tolist())


def test_answers_that_are_all_alike_still_give_a_matrix() -> None:
    rows = transition.estimate_matrix(torch.full((20, 4), 0.25), 0.97)

    torch.testing.assert_close(rows, torch.full((4, 4), 0.25))


def test_an_impossible_label_has_a_finite_loss_and_a_gradient() -> None:
    logits = torch.tensor([[20.0, -20.0, 0.0]], requires_grad=True)
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    loss = transition.forward_cross_entropy(logits, torch.tensor([1]), certain)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert bool(loss.isfinite())
    assert float(gradient.abs().sum()) > 0.1


def test_no_learned_slack_lets_one_image_outweigh_the_others() -> None:
    """A denominator p_y T_yy + p_i T_iy with T_iy a little below 0 would be 0 for some answer."""
    p = torch.stack([torch.linspace(1e-6, 0.99, 1000), 1 - torch.linspace(1e-6, 0.99, 1000)], dim=1)
    slack = torch.tensor([[0.6, 0.4], [-0.01, 1.01]])
    weights = transition.importance_weights(p.log(), torch.zeros(1000, dtype=torch.int64), slack)

    assert float(weights.min()) > 0
    assert float(weights.max()) <= 1 / 0.6 + 1e-6
    nowhere = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert bool(transition.importance_weights(p.log(), torch.ones(1000, dtype=torch.int64), nowhere).isfinite().all())


@pytest.mark.parametrize("rows", [[], [[1.0, 0.0]], [[0.5, 0.4], [0.0, 1.0]], [[1.5, -0.5], [0.0, 1.0]]])
def test_what_is_no_transition_matrix_is_refused(rows: list[list[float]]) -> None:
    with pytest.raises(pydantic.ValidationError):
        transition.TransitionParams.model_validate({"transition": rows})


def test_a_matrix_of_other_classes_is_refused_and_a_rounded_one_sums_to_one() -> None:
    with pytest.raises(errors.UnusableData):
        transition.known_matrix(((1.0, 0.0), (0.0, 1.0)), 3)

    assert torch.equal(transition.known_matrix(None, 3), torch.eye(3))
    assert transition.known_matrix(((0.3333, 0.6666), (0.0, 1.0)), 2).sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
