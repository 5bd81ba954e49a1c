"""JoCoR: the terms of an image's loss, and that both networks learn from one selection."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ml import networks
from ml.blocks import losses
from ml.method import Batch, TrainHyperparameters
from ml.methods import jocor
from tests.ml.conftest import CLASSES, SIDE

ONE = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])
TWO = torch.tensor([[1.0, 0.5, -0.5], [0.2, 0.1, 1.0]])
LABELS = torch.tensor([0, 2])


def made(**params: Any) -> jocor.Method:
    torch.manual_seed(0)
    labels = torch.arange(40) % CLASSES
    return jocor.Method(jocor.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def test_the_published_formula_gives_its_values() -> None:
    torch.testing.assert_close(
        jocor.joint_losses(ONE, TWO, LABELS, 0.9), torch.tensor([0.4787, 0.5269]), atol=5e-5, rtol=0
    )


def test_without_agreement_it_is_both_cross_entropies_and_agreement_has_two_sides() -> None:
    plain = losses.cross_entropies(ONE, LABELS) + losses.cross_entropies(TWO, LABELS)
    torch.testing.assert_close(jocor.joint_losses(ONE, TWO, LABELS, 0.0), plain)

    one, two = ONE.clone().requires_grad_(), TWO.clone().requires_grad_()
    pulled = torch.autograd.grad(losses.symmetric_kls(one, two).sum(), (one, two))
    assert all(float(gradient.abs().min()) > 0 for gradient in pulled)
    torch.testing.assert_close(losses.symmetric_kls(ONE, ONE), torch.zeros(2))


def test_both_networks_learn_from_the_images_with_the_smallest_joint_loss() -> None:
    method = made(noise_rate=0.5).train()
    images = torch.randn(16, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(16) % CLASSES
    one, two = (network(images).detach() for network in method.networks)
    joint = jocor.joint_losses(one, two, labels, 0.9)
    phase = method.phases(TrainHyperparameters(20, 0.05, 0.9, 5e-4, lambda progress: 1.0))[0]
    loss = phase.loss(Batch((images,), labels, labels, lambda _: None, 10))
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(joint.sort().values[:8].mean()), rel=1e-5)
    assert all(p.grad is not None for p in method.parameters())
