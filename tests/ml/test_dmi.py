"""DMI: which changes of the labels leave its loss unchanged, and batches in which classes are absent."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ml.data.dataset import LabeledImages
from ml.methods import dmi
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.ml.conftest import same

Specs = Callable[..., TrainingSpec]


def sample(size: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that know their labels somewhat, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (size,), generator=generator)
    logits = torch.randn(size, classes, generator=generator)
    return logits + 3 * (labels[:, None] == torch.arange(classes)), labels


def test_the_published_formula_gives_its_value() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [1.0, 0.0, 0.0]])
    loss = dmi.determinant_loss(logits, torch.tensor([0, 1, 2, 1]))

    assert float(loss) == pytest.approx(0.6240, abs=5e-5)
    assert math.exp(-float(loss)) - 1e-3 == pytest.approx(0.5348, abs=5e-5)


def test_classes_renamed_change_nothing() -> None:
    logits, labels = sample(64, 4)
    renamed = torch.tensor([2, 0, 3, 1])[labels]

    torch.testing.assert_close(dmi.determinant_loss(logits, renamed), dmi.determinant_loss(logits, labels))


def test_noise_by_class_shifts_every_networks_loss_alike() -> None:
    """A third of each class to the next: whichever network answers, the loss grows by -log |det T|."""
    labels = torch.arange(4).repeat_interleave(30)
    noisy = torch.where(torch.arange(120) % 3 == 0, (labels + 1) % 4, labels)
    matrix = torch.eye(4) * 2 / 3 + torch.eye(4).roll(1, dims=1) / 3
    for strength in (1.0, 5.0):  # of an answer to each class, the same for all its images
        answers = torch.randn(4, 4, generator=torch.Generator().manual_seed(int(strength))) + strength * torch.eye(4)
        shift = dmi.determinant_loss(answers[labels], noisy) - dmi.determinant_loss(answers[labels], labels)
        assert float(shift) == pytest.approx(-math.log(abs(float(torch.linalg.det(matrix)))), abs=1e-3)


def test_it_falls_as_answers_become_right() -> None:
    logits, labels = sample(64, 4)
    logits.requires_grad_()
    loss = dmi.determinant_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert float(dmi.determinant_loss((logits - 0.1 * gradient).detach(), labels)) < float(loss.detach())
    assert (gradient.gather(1, labels[:, None]) < 0).float().mean() > 0.9


@pytest.mark.parametrize(("size", "classes", "inert"), [(3, 4, True), (4, 4, False), (256, 100, True)])
def test_an_absent_class_gives_no_gradient_and_no_infinity(size: int, classes: int, inert: bool) -> None:
    logits, labels = sample(size, classes)
    labels = torch.arange(size) if size <= classes else labels
    logits.requires_grad_()
    loss = dmi.determinant_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert bool(gradient.isfinite().all())
    assert (float(gradient.abs().max()) < 1e-6) == inert
    assert not inert or float(loss.detach()) == pytest.approx(-math.log(1e-3))


@pytest.mark.parametrize(("size", "classes"), [(512, 10), (1024, 100)])
def test_large_batches_do_not_outvote_an_absent_class(size: int, classes: int) -> None:
    logits, labels = sample(size, classes)
    labels = labels.where(labels > 0, 1)
    logits.requires_grad_()
    loss = dmi.determinant_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)

    assert float(loss.detach()) == pytest.approx(-math.log(1e-3))
    assert not gradient.any()


def test_large_batches_speak_for_a_hundred_classes() -> None:
    logits, labels = sample(1024, 100)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(dmi.determinant_loss(logits, labels), logits)

    assert float(gradient.abs().max()) > 1e-3


def test_it_begins_with_the_warm_ups_best_epoch_and_moves_little(spec: Specs, labeled: LabeledImages) -> None:
    settings = spec(method="dmi", epochs=5, params={"warm_up": 0.8}, validation_fraction=0.3)
    training = Trainer.build(settings, labeled)
    ends, rates = [], []
    for event in training:
        if isinstance(event, EpochReport):
            state = training.method.get_submodule("network").state_dict()
            ends.append({name: v.clone() for name, v in state.items() if name.endswith("weight")})
            rates.append(event.learning_rate)
    accuracies = training.noisy_accuracies()[:4]
    best = max(range(4), key=lambda epoch: (accuracies[epoch], epoch))

    assert rates[4] == pytest.approx(0.05 * 1e-5)
    assert same(ends[4], ends[best]) != []
    for name, weight in ends[4].items():
        torch.testing.assert_close(weight, ends[best][name], atol=1e-4, rtol=0)
