"""SOP: the reference's values and gradients, whose rates move, and what a prediction leaves out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ml.blocks import overparameterization
from ml.data.dataset import LabeledImages
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import reports

Specs = Callable[..., TrainingSpec]
LOGITS = torch.tensor([[2, 0, -1], [0, 1, 0.5]])
LABELS = torch.tensor([0, 2])


def variables() -> tuple[Tensor, Tensor]:
    u = torch.tensor([[0.3], [0.2]], requires_grad=True)
    v = torch.tensor([[0.1, 0.2, 0.3], [0.2, 0.1, 0.4]], requires_grad=True)
    return u, v


@pytest.mark.parametrize(("detached", "expected"), [(False, [0.0303, -0.7580]), (True, [-0.0237, -0.3740])])
def test_values_and_gradients_are_the_references(detached: bool, expected: list[float]) -> None:
    u, v = variables()
    terms = overparameterization.loss_terms(LOGITS, LABELS, u, v, detach_u=detached)
    (terms.cross_entropy + terms.squared_error).backward()

    assert round(float(terms.cross_entropy.detach()), 4) == 0.5622
    assert round(float(terms.squared_error.detach()), 5) == 0.96055
    answers = torch.tensor([[0.9263, 0.0736, 0.0001], [0.1478, 0.5015, 0.3507]])
    torch.testing.assert_close(terms.probabilities, answers, rtol=0, atol=6e-5)
    assert u.grad is not None
    assert v.grad is not None
    torch.testing.assert_close(u.grad[:, 0], torch.tensor(expected), rtol=0, atol=6e-5)
    to_v = torch.tensor([[0, 0.0160, 0.0540], [0.0160, -0.1980, 0]])
    torch.testing.assert_close(v.grad, to_v, rtol=0, atol=6e-5)


def test_each_term_reaches_its_own_variables() -> None:
    """The network and u learn from the cross-entropy, v from the squared error alone."""
    u, v = variables()
    logits = LOGITS.clone().requires_grad_()
    terms = overparameterization.loss_terms(logits, LABELS, u, v)
    to_logits, to_u, to_v = torch.autograd.grad(
        terms.cross_entropy, [logits, u, v], allow_unused=True, retain_graph=True
    )
    assert to_logits is not None
    assert to_u is not None
    assert to_v is None
    to_logits, to_u, to_v = torch.autograd.grad(terms.squared_error, [logits, u, v], allow_unused=True)
    assert to_logits is None
    assert to_u is not None
    assert to_v is not None


def test_a_samples_step_does_not_depend_on_the_size_of_its_batch() -> None:
    steps = []
    for copies in (1, 3):
        own = overparameterization.SampleVariables(2 * copies, 3)
        with torch.no_grad():
            own.u.fill_(0.3)
            own.v.fill_(0.2)
        terms = own.loss_terms(LOGITS.repeat(copies, 1), LABELS.repeat(copies), torch.arange(2 * copies))
        (terms.cross_entropy + terms.squared_error).backward()
        own.rescale_gradients(2 * copies)
        own.sgd(overparameterization.OverparameterizationParams(u_learning_rate=0.1, v_learning_rate=0.1)).step()
        steps.append((own.u[:2].detach(), own.v[:2].detach()))

    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other)
        assert not torch.allclose(one, torch.full_like(one, float(one.flatten()[0])))


@pytest.mark.parametrize("method", ["sop", "sop_plus"])
def test_rates_of_u_and_v_never_move_and_they_have_no_momentum(
    method: str, spec: Specs, labeled: LabeledImages
) -> None:
    params = {"u_learning_rate": 3.0, "v_learning_rate": 5.0}
    training = Trainer.build(spec(method=method, params=params, epochs=2, batch_size=48), labeled)
    rates = [
        tuple(group["lr"] for group in training.optimizers.groups) for event in training if isinstance(event, Step)
    ]

    assert {rate[1:] for rate in rates} == {(3.0, 5.0)}
    assert len({rate[0] for rate in rates}) > 2
    own = training.optimizers.constant_rate[0]
    assert all(state.get("momentum_buffer") is None for state in own.state.values())
    assert all(group["weight_decay"] == 0 for group in own.param_groups)


def test_a_prediction_is_the_networks_own(spec: Specs, labeled: LabeledImages) -> None:
    method = Trainer.build(spec(method="sop", epochs=1), labeled).method
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    method.eval()
    with torch.no_grad():
        before = method.logits(images)
        for name, variable in method.named_parameters():
            if name.startswith("variables"):
                variable.fill_(1.0)

        assert torch.equal(method.logits(images), before)


@pytest.mark.parametrize("host", ["sop", "sop_plus"])
def test_denll_hosts_it_with_its_rates_untouched(host: str, spec: Specs, labeled: LabeledImages) -> None:
    params = {"host": host, "host_params": {"u_learning_rate": 3.0}}
    training = Trainer.build(spec(method="denll", params=params, epochs=2, batch_size=48), labeled)

    assert all(report.finite for report in reports(training))
    assert [member.param_groups[0]["lr"] for member in training.optimizers.constant_rate] == [3.0, 3.0]
