"""CORES*: what phase 2 takes over from phase 1, which view trains the other, how long the phases are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ml import networks
from ml.blocks import losses, schedules
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters, Unlabelled
from ml.methods import cores_star
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import CLASSES, SIDE, reports, same

COUNT = 16


def made(**params: Any) -> cores_star.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return cores_star.Method(cores_star.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: cores_star.Method, epochs: int = 1640) -> list[Phase]:
    cosine = schedules.by_name("cosine", milestones=(), decay=0.1, floor=0.0)
    return list(method.phases(TrainHyperparameters(epochs, 0.3, 0.9, 5e-4, cosine)))


def batch(**changes: Any) -> Batch:
    """Eight labelled and four unlabelled images, a weak and a strong view each."""
    views = torch.randn(2, 12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {
        "views": (views[0, :8], views[1, :8]),
        "labels": torch.arange(8) % CLASSES,
        "index": torch.arange(8),
        "record_logits": lambda _: None,
        "epoch": 500,
        "progress": 0.5,
        "unlabelled": Unlabelled((views[0, 8:], views[1, 8:]), torch.arange(8, 12), lambda _: None),
    }
    return Batch(**settings | changes)


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(1641, 41 / 1641, [41, 1600]), (30, 0.2, [6, 24]), (2, 0.2, [1, 1]), (1, 0.2, [1])],
)
def test_stages_scale_with_the_epochs(epochs: int, share: float, expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(sieve=share), epochs)] == expected


@pytest.mark.parametrize(("epochs", "since"), [(41, 31), (6, 5), (2, 1)])
def test_phase_one_is_cores_up_to_its_selection(epochs: int, since: int) -> None:
    method = made(sieve=1.0)
    method.train()
    (phase, _) = phases(method, epochs + 1)
    images = torch.randn(COUNT, 3, SIDE, SIDE)
    seen = [
        Batch((images,), method.selection.labels, torch.arange(COUNT), lambda _: None, epoch)
        for epoch in (since - 1, since)
    ]
    phase.loss(seen[0])
    assert method.selection.selected.all()
    phase.loss(seen[1])
    assert not method.selection.selected.all()


def test_published_phase_one_has_its_own_batches_and_plain_descent() -> None:
    first, second = phases(made(**cores_star.PUBLISHED), 1641)
    assert (first.epochs, first.images_per_step(400), first.images_per_step(32)) == (41, 64, 32)
    assert second.images_per_step(400) == 400

    assert first.optimizers is not None
    assert second.optimizers is not None
    settings = [phase.optimizers().groups[0] for phase in (first, second) if phase.optimizers is not None]
    assert [(group["momentum"], group["weight_decay"]) for group in settings] == [(0.0, 0.0), (0.9, 5e-4)]
    assert settings[0]["lr"] == pytest.approx(0.1)


def test_a_training_has_the_batches_of_phase_one_and_resumes_inside_it(
    spec: Callable[..., TrainingSpec], labeled: LabeledImages
) -> None:
    chosen = spec(method="cores_star", params={"sieve": 0.5, "sieve_batch_size": 8}, epochs=2)
    whole, first, second = (Trainer.build(chosen, labeled) for _ in range(3))
    steps = [event.steps for event in whole if isinstance(event, Step) and event.step == 0]
    assert steps[0] == math.ceil((len(whole.batches) - 1) / 8)
    assert steps[1] < steps[0]

    events = iter(first)
    for _ in range(5):
        next(events)
    second.restore(first.state())
    reports(second)
    assert same(whole.method.state_dict(), second.method.state_dict()) == []


@pytest.mark.parametrize(("statistics", "passes"), [("joint", [8 + 4 + 4]), ("apart", [4, 8 + 4])])
def test_strong_views_share_their_statistics_with_weak_ones_or_not(statistics: str, passes: list[int]) -> None:
    method = made(view_statistics=statistics)
    sizes: list[int] = []
    method.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    phases(method)[1].loss(batch())

    assert sizes == passes


def test_stage_two_is_a_fresh_network_before_a_division_that_stays() -> None:
    method = made()
    method.train()
    method.selection.selected.copy_(torch.arange(COUNT) < 10)
    second = phases(method)[1]
    before = method.network.classifier.weight.clone()  # type: ignore[operator]
    second.enter(None)  # type: ignore[arg-type]
    second.loss(batch())
    assert second.passes is not None
    (one_pass,) = second.passes()

    assert not torch.equal(before, method.network.classifier.weight)  # type: ignore[arg-type]
    assert torch.equal(one_pass.pool, torch.arange(COUNT) < 10)
    assert one_pass.unlabelled is not None
    assert torch.equal(one_pass.unlabelled, ~one_pass.pool)
    assert second.views == ("weak", "strong")


def test_labelled_images_teach_by_their_strong_view_and_the_weak_one_teaches_the_strong() -> None:
    method = made(consistency_weight=0.4).eval()
    seen = batch()
    assert seen.unlabelled is not None
    answers = [method.network(view) for view in (seen.views[1], *seen.unlabelled.views)]
    expected = losses.cross_entropy(answers[0], seen.labels) + 0.4 * losses.consistency_kl(answers[1], answers[2])

    assert float(phases(method)[1].loss(seen).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_consistency_has_gradients_in_the_second_view_alone_and_is_0_for_equal_views() -> None:
    one, two = (torch.randn(3, CLASSES).requires_grad_() for _ in range(2))
    torch.autograd.backward(losses.consistency_kl(one, two))
    p, q = one.detach().softmax(dim=1), two.detach().softmax(dim=1)

    assert one.grad is None
    assert two.grad is not None
    assert float(losses.consistency_kl(one, two).detach()) == pytest.approx(
        float((p * (p / q).log()).sum() / 3), rel=1e-4
    )
    assert float(losses.consistency_kl(one, one).detach()) == pytest.approx(0.0, abs=1e-6)


def test_nothing_set_aside_or_everything_is_plain_training_on_all() -> None:
    for selected in (True, False):
        method = made()
        method.selection.selected.fill_(selected)
        passes = phases(method)[1].passes
        assert passes is not None
        (one_pass,) = passes()
        assert one_pass.pool.all()
        assert one_pass.unlabelled is None
    assert torch.isfinite(phases(method)[1].loss(batch(unlabelled=None)))


def test_the_learning_rate_of_stage_two_climbs_and_then_follows_the_schedule() -> None:
    build = phases(made())[1].optimizers
    assert build is not None
    factor = build().factor

    assert factor(0.0) == pytest.approx(1 / 300)
    assert factor(60 / 1600) == pytest.approx(0.5)
    assert factor(120 / 1600) == pytest.approx(1.0)
    assert factor(1.0) == pytest.approx(0.0, abs=1e-9)
