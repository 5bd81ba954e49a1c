"""CORES: the regularised loss, which labels are selected, what changes with the epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ml import networks
from ml.blocks import losses, sample_selection, schedules
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters
from ml.methods import cores
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import CLASSES, SIDE, halves

COUNT = 16
Z, Y = torch.tensor([[2.0, 0, -1], [0, 1, 0.5]]), torch.tensor([0, 2])


def made(**params: Any) -> cores.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return cores.Method(cores.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def only_phase(method: cores.Method, epochs: int = 100) -> Phase:
    (phase,) = method.phases(TrainHyperparameters(epochs, 0.1, 0.0, 0.0, schedules.constant))
    return phase


def batch(epoch: int, record_logits: Callable[[Tensor], None] = lambda _: None) -> Batch:
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return Batch((images,), torch.arange(COUNT) % CLASSES, torch.arange(COUNT), record_logits, epoch)


def test_loss_and_selection_have_the_reference_values() -> None:
    """A worked example in float64: β = 2, uniform prior."""
    regularised, value = sample_selection.regularised_losses(Z, Y, 2.0, torch.full((3,), 1 / 3))

    assert value.tolist() == pytest.approx([-1.6667, 0], abs=1e-4)
    assert regularised.tolist() == pytest.approx([-3.5032, -1.1803], abs=1e-4)


def test_a_label_is_kept_if_its_logit_is_no_less_than_the_mean_logit() -> None:
    logits = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(200) % CLASSES
    selection = sample_selection.SampleSelection(labels, CLASSES)
    selection.loss(logits, labels, torch.arange(200), 1.0, selecting=True)

    assert torch.equal(selection.selected, logits[torch.arange(200), labels] >= logits.mean(dim=1))


def test_labels_that_are_not_selected_have_no_gradient() -> None:
    labels = torch.tensor([0, 1])
    selection = sample_selection.SampleSelection(labels, 3)
    logits = torch.tensor([[3.0, 0, 0], [3.0, 0, 0]], requires_grad=True)
    torch.autograd.backward(selection.loss(logits, labels, torch.arange(2), 0.0, selecting=True))
    assert logits.grad is not None
    assert logits.grad[0].any()
    assert not logits.grad[1].any()

    assert float(selection.loss(logits.detach()[1:], labels[1:], torch.tensor([1]), 0.0, selecting=True)) == 0.0


def test_the_prior_is_that_of_the_labels_kept_by_the_epoch_before() -> None:
    selection = sample_selection.SampleSelection(torch.tensor([0, 0, 1, 2]), 3)
    assert selection.prior.tolist() == [0.5, 0.25, 0.25]
    selection.selected.copy_(torch.tensor([1, 0, 1, 0]).bool())
    selection.update_prior()
    assert selection.prior.tolist() == [0.5, 0.5, 0.0]
    selection.selected.fill_(False)
    selection.update_prior()
    assert selection.prior.tolist() == [0.5, 0.25, 0.25]


def test_the_regulariser_grows_as_in_the_paper() -> None:
    weights = [sample_selection.regulariser_weight(epoch, 10, 30, 2.0) for epoch in (0, 9, 10, 11, 38, 39, 40, 99)]

    assert weights == pytest.approx([0, 0, 0, 2 / 29, 2 * 28 / 29, 2, 2, 2])


def test_without_regulariser_and_selection_it_is_cross_entropy() -> None:
    method = made()
    method.train()
    seen = batch(0)
    expected = losses.cross_entropy(method.network(seen.images), seen.labels)

    assert float(only_phase(method).loss(seen).detach()) == pytest.approx(float(expected.detach()))


def test_the_selection_begins_after_epoch_30_of_100() -> None:
    method = made()
    method.train()
    only_phase(method).loss(batch(30))
    assert method.selection.selected.all()
    only_phase(method).loss(batch(31))
    assert not method.selection.selected.all()


def test_the_learning_rate_is_divided_by_one_plus_the_weight() -> None:
    build = only_phase(made()).optimizers
    assert build is not None
    factor = build().factor

    assert [factor(epoch / 100) for epoch in (0, 10, 39, 70)] == pytest.approx([1, 1, 1 / 3, 1 / 3])


def test_its_selection_leaves_out_wrong_labels(spec: Callable[..., TrainingSpec]) -> None:
    images, clean = halves(160, seed=2)
    noise = {"kind": "symmetric", "rate": 0.4}
    settings = spec(method="cores", epochs=8, batch_size=16, learning_rate=0.02, validation_fraction=0.0, noise=noise)
    training = Trainer.build(settings, LabeledImages(images, clean, tuple("abcd")))
    wrong = training.labels != clean
    list(training)
    assert isinstance(training.method, cores.Method)
    selected = training.method.selection.selected

    assert wrong[~selected].float().mean() > 0.9
    assert wrong[selected].float().mean() < 0.15
