"""DeNLL on base methods with several phases: frozen and reinitialised parts, agreement, pools, resuming."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ml import networks
from ml.blocks import mutual_learning, pool_union, schedules
from ml.data import dataset
from ml.method import Batch, Pass, Phase, TrainHyperparameters, Unlabelled
from ml.methods import denll
from ml.training import checkpoint
from ml.training.events import Step
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import halves, same
from tests.ml.context import FixedContext

SIDE, CLASSES, COUNT = 16, 3, 24
AT_ONCE = {"agreement_start": 0.0, "agreement_ramp": 0.0}
SELECTING = ["pes", "pes_semi", "dividemix"]


def made(host: str, **params: Any) -> denll.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    made = denll.Params.model_validate({"host": host, **AT_ONCE, **params})
    return denll.Method(made, labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: denll.Method, epochs: int = 40) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.05, 0.9, 5e-4, schedules.constant)))


def all_predicted(epoch: int = 0) -> FixedContext:
    """Every given label is predicted."""
    return FixedContext(nn.functional.one_hot(torch.arange(COUNT) % CLASSES).float(), epoch=epoch)


def batch(epoch: int = 0, views: int = 1) -> Batch:
    batch_of_views = torch.randn(views, COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).unbind()
    labels, index = torch.arange(COUNT) % CLASSES, torch.arange(COUNT)
    mixing = torch.Generator().manual_seed(2)
    return Batch(batch_of_views, labels, index, lambda _: None, epoch, epoch / 40, generator=lambda _: mixing)


def leaf_with_gradient(size: float) -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.tensor([size])
    return weight


# --- which of DeNLL's parts belong to which of the base method's ---


def test_the_localization_module_is_frozen_while_the_body_is() -> None:
    method = made("pes")
    assert method.deconfounder.localization is not None
    learning = []
    for phase in phases(method):
        phase.enter(all_predicted())
        learning.append({p.requires_grad for p in method.deconfounder.localization.parameters()})

    assert learning == [{True}, {False}, {False}, {True}]


def test_gates_are_reset_with_the_classifier_and_not_otherwise() -> None:
    method = made("pes")
    assert method.gates is not None
    reset = []
    for phase in phases(method):
        nn.init.ones_(method.gates.linear.weight)
        phase.enter(all_predicted())
        reset.append(not method.gates.linear.weight.any())

    assert reset == [False, True, True, False]
    assert all(p.requires_grad for p in method.gates.parameters())


def test_gates_are_frozen_while_the_classifier_is_and_frozen_parts_are_not_clipped() -> None:
    method = made("pes", host_params={"after_refine": "frozen_tail"})
    assert method.gates is not None
    learning = []
    for phase in phases(method):
        phase.enter(all_predicted())
        learning.append({p.requires_grad for p in method.gates.parameters()})
    assert learning == [{True}, {True}, {True}, {False}]

    for parameter in method.parameters():
        parameter.grad = torch.full_like(parameter, 0.0 if parameter.requires_grad else 9.0)
    method.damping.record_gradients(method.parameters(), 1.0)
    assert (float(method.damping.clipped), float(method.damping.steps)) == (0.0, 1.0)


@pytest.mark.parametrize("host", ["pes", "pes_semi"])
def test_both_branches_reinitialise_and_train_the_same_parts(host: str) -> None:
    method = made(host)
    for phase in phases(method)[:2]:
        phase.enter(all_predicted())
    phase.loss(batch()).backward()
    moving = [{n for n, p in base.named_parameters() if p.grad is not None} for base in (method.base1, method.base2)]

    assert moving[0] == moving[1]
    assert any(name.startswith("network.classifier") for name in moving[0])
    assert any(name.startswith("network.last_stage") for name in moving[0]) == (host == "pes")
    assert not any(name.startswith("network.body") for name in moving[0])


# --- agreement ---


@pytest.mark.parametrize("host", SELECTING)
def test_no_agreement_before_the_last_phase(host: str) -> None:
    """Seen by the buffers that watch it: the same step, before and after."""
    method = made(host)
    method.train()
    all_phases = phases(method)
    begun = sum(phase.epochs for phase in all_phases[:-1])
    plain, last = all_phases[0], all_phases[-1]
    plain.loss(batch(begun - 1))
    assert float(method.damping.terms) == 0.0
    last.loss(batch(begun, views=len(last.views)))

    assert float(method.damping.terms) > 0.0
    assert float(method.damping.divergence) > 0.0


def test_damping_halves_the_weight_after_clipped_gradients_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for divergence, clipped, factor in ((0.05, 0, 1.0), (2.0, 5, 1.0), (0.05, 6, 0.5)):
        caplog.clear()
        damping = mutual_learning.AgreementDamping()
        for step in range(10):
            damping.record_divergence(torch.tensor(divergence))
            weight = leaf_with_gradient(6.0 if step < clipped else 4.0)
            damping.record_gradients([weight, nn.Parameter(torch.zeros(1))], 5.0)
        with caplog.at_level(logging.WARNING):
            damping.update_factor()
        assert float(damping.factor) == factor
        assert bool(caplog.records) == (factor < 1.0)


def test_damping_is_updated_once_after_the_first_epoch_of_agreement() -> None:
    method = made("pes")
    last = phases(method)[-1]
    begun = sum(phase.epochs for phase in phases(method)[:-1])
    method.damping.record_gradients([leaf_with_gradient(9.0)], 5.0)
    for epoch, factor in ((begun, 1.0), (begun + 1, 0.5), (begun + 2, 0.5)):
        last.begin_epoch(all_predicted(epoch))
        assert float(method.damping.factor) == factor


def test_a_base_method_with_one_phase_has_no_damping() -> None:
    method = made("ce")
    method.train()
    (only,) = phases(method)
    only.loss(batch(0))

    assert float(method.damping.terms) == 0.0


# --- pools, and what the gates learn from ---


def test_either_branchs_trust_labels_an_image_and_repetitions_stay() -> None:
    one = Pass(torch.tensor([0, 0, 1, 1, 2, 2]), torch.arange(8) > 2, 0.5)
    two = Pass(torch.tensor([1, 2, 3]), ~torch.isin(torch.arange(8), torch.tensor([1, 2, 3])), 0.4)
    union = pool_union.unite(one, two)

    assert union.pool.bincount().tolist() == [2, 1, 2, 1]
    assert union.unlabelled is not None
    assert union.unlabelled.tolist() == [4, 5, 6, 7]
    assert union.share == 0.4
    alone = pool_union.unite(Pass(torch.arange(8) < 6), one)
    assert alone.pool.tolist() == [0, 1, 2, 3, 4, 5]
    assert alone.unlabelled is not None
    assert alone.unlabelled.tolist() == [6, 7]


@pytest.mark.parametrize("host", ["dividemix", "pes_semi"])
def test_gates_learn_from_labelled_images_whether_or_not_a_base_method_passes_them_unmixed(host: str) -> None:
    """PES (semi) passes mixed ones alone: the gates then learn in evaluation mode, and no running statistics move."""
    method = made(host)
    assert method.gates is not None
    method.train()
    last = phases(method)[-1]
    seen = batch(20, views=2)
    unlabelled = Unlabelled(tuple(view[12:] for view in seen.views), torch.arange(12, 24), lambda _: None)
    batch_of_views = Batch(
        tuple(view[:12] for view in seen.views),
        seen.labels[:12],
        torch.arange(12),
        seen.record_logits,
        20,
        0.5,
        unlabelled=unlabelled,
        generator=seen.generator,
    )
    last.loss(batch_of_views).backward()
    updates = [
        int(module.get_buffer("num_batches_tracked"))
        for module in method.base1.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]

    assert method.gates.linear.weight.grad is not None
    assert method.gates.linear.weight.grad.abs().sum() > 0
    assert method.training
    without = made(host, gates="off")
    without.train()
    phases(without)[-1].loss(replace(batch_of_views, generator=lambda _: torch.Generator().manual_seed(2)))
    tracked = [
        int(module.get_buffer("num_batches_tracked"))
        for module in without.base1.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert updates == tracked


# --- altogether ---


@pytest.mark.parametrize("host", SELECTING)
def test_it_resumes_bit_for_bit_inside_every_phase(host: str) -> None:
    pictures = dataset.LabeledImages(*halves(40), tuple("abcd"))
    spec = TrainingSpec(
        method="denll",
        params={"host": host, **AT_ONCE},
        network="small",
        image_size=SIDE,
        epochs=5,
        batch_size=20,
        precision="f32",
    )
    whole = Trainer.build(spec, pictures, device="cpu", threads=1)
    begun: dict[str, checkpoint.State] = {}
    for event in whole:
        if isinstance(event, Step) and event.step == 0:
            begun.setdefault(event.phase, whole.state())
    assert len(begun) == len(whole.phases) >= 2
    states = [*begun.values(), whole.state()]
    for state, expected in itertools.pairwise(states):  # each from the one before: equal steps make equal ends
        resumed = Trainer.build(spec, pictures, device="cpu", threads=1)
        resumed.restore(state)
        steps = iter(resumed)
        while resumed.step < expected.facts["step"] or resumed.epoch < expected.facts["epoch"]:
            next(steps)
        assert same(expected.tensors, resumed.state().tensors) == []
    last = whole.history[-1]
    assert set(last.noisy_validation) == {"answer", "g1", "g2", "mean"}
