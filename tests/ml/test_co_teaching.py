"""Co-teaching: which network selects for which, how much of a batch is left out and when, and by which optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ml import networks
from ml.blocks import losses, two_networks
from ml.data.dataset import LabeledImages
from ml.method import Batch, TrainHyperparameters
from ml.methods import co_teaching
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import CLASSES, SIDE, reports

Specs = Callable[..., TrainingSpec]


def made(**params: Any) -> co_teaching.Method:
    torch.manual_seed(0)
    labels = torch.arange(40) % CLASSES
    return co_teaching.Method(co_teaching.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def recipe(epochs: int = 20) -> TrainHyperparameters:
    return TrainHyperparameters(epochs, 5.0, 0.9, 5e-4, lambda progress: 1.0)


def test_each_network_learns_what_the_other_one_finds_plausible() -> None:
    one = torch.tensor([0.1, 0.2, 5.0, 6.0], requires_grad=True)
    two = torch.tensor([7.0, 0.3, 0.1, 9.0], requires_grad=True)
    loss = co_teaching.cross_selected_loss(one, two, 0.5)
    loss.backward()

    assert float(loss.detach()) == pytest.approx((0.2 + 5.0) / 2 + (7.0 + 0.3) / 2)
    assert one.grad is not None
    assert one.grad.tolist() == [0.0, 0.5, 0.5, 0.0]
    assert two.grad is not None
    assert two.grad.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_the_first_epoch_learns_all_labels_and_a_later_one_sets_the_noise_rate_aside() -> None:
    method = made(noise_rate=0.5).train()
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % CLASSES
    one, two = (losses.cross_entropies(network(images), labels).detach() for network in method.networks)
    values = [
        float(method.phases(recipe())[0].loss(Batch((images,), labels, labels, lambda _: None, epoch)).detach())
        for epoch in (0, 10)
    ]

    assert values[0] == pytest.approx(float(one.mean() + two.mean()), rel=1e-5)
    assert values[1] == pytest.approx(float(one[two.argsort()[:8]].mean() + two[one.argsort()[:8]].mean()), rel=1e-5)


def test_the_schedule_of_the_forget_rate_scales_with_the_epochs() -> None:
    """Published: full in the tenth of 200 epochs."""
    params = co_teaching.Params(noise_rate=0.45)

    assert [two_networks.forget_rate(params, epoch, 200) for epoch in (0, 1, 9, 199)] == pytest.approx(
        [0, 0.05, 0.45, 0.45]
    )
    assert [two_networks.forget_rate(params, epoch, 20) for epoch in (0, 1)] == pytest.approx([0, 0.45])
    half = co_teaching.Params(noise_rate=0.4, forgotten=0.5)
    assert two_networks.forget_rate(half, 100, 200) == pytest.approx(0.2)


def test_adam_has_its_own_rate_and_sgd_the_trainings() -> None:
    rates = {}
    for kind in ("adam", "sgd"):
        method = made(optimizer=kind)
        build = method.phases(recipe())[0].optimizers
        assert build is not None
        built = build()
        rates[type(built.members[0])] = built.groups[0]["lr"]
        assert {id(p) for group in built.groups for p in group["params"]} == {id(p) for p in method.parameters()}

    assert rates == {torch.optim.Adam: 1e-3, torch.optim.SGD: 5.0}


def test_the_answer_is_the_mean_of_both_networks_probabilities() -> None:
    heads = made().eval().heads(torch.randn(5, 3, SIDE, SIDE))

    assert set(heads) == {"answer", "g1", "g2", "mean"}
    expected = (heads["g1"].softmax(dim=1) + heads["g2"].softmax(dim=1)) / 2
    torch.testing.assert_close(heads["answer"].softmax(dim=1), expected)
    assert torch.equal(heads["answer"], heads["mean"])


def test_it_hosts_denll(spec: Specs, labeled: LabeledImages) -> None:
    """Two networks for each branch; adam and DeNLL's own optimizers beside each other."""
    training = Trainer.build(spec(method="denll", params={"host": "co_teaching"}, epochs=2), labeled)
    before = {name: p.detach().clone() for name, p in training.method.named_parameters()}
    assert len(reports(training)) == 2

    assert [name for name, p in training.method.named_parameters() if torch.equal(p, before[name])] == []
