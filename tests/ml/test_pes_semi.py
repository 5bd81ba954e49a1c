"""PES (semi): images of each kind in a step; labels of unlabelled images do not count; how images are mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ml import networks
from ml.blocks import pool_union, reinitialisation, schedules
from ml.data import image_store
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters, Unlabelled
from ml.methods import pes_semi
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import CLASSES, SIDE

COUNT = 40


def made(**params: Any) -> pes_semi.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return pes_semi.Method(pes_semi.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: pes_semi.Method, epochs: int = 300) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.02, 0.9, 5e-4, schedules.constant)))


def batch(epoch: int = 200, **changes: Any) -> Batch:
    """Eight labelled and four unlabelled images, two views each."""
    source = torch.Generator().manual_seed(1)
    views = torch.randn(2, 12, 3, SIDE, SIDE, generator=source)
    mixing = torch.Generator().manual_seed(2)
    unlabelled = Unlabelled((views[0, 8:], views[1, 8:]), torch.arange(8, 12), lambda _: None)
    settings: dict[str, Any] = {
        "views": (views[0, :8], views[1, :8]),
        "labels": torch.arange(8) % CLASSES,
        "index": torch.arange(8),
        "record_logits": lambda _: None,
        "epoch": epoch,
        "progress": epoch / 300,
        "unlabelled": unlabelled,
        "generator": lambda _: mixing,
    }
    return Batch(**settings | changes)


def value(method: pes_semi.Method, seen: Batch) -> float:
    method.train()
    torch.manual_seed(0)
    return float(phases(method)[-1].loss(seen).detach())


@pytest.mark.parametrize(
    ("epochs", "expected"), [(300, [20, 5, 275]), (30, [2, 1, 27]), (3, [1, 1, 1]), (2, [1, 1]), (1, [1])]
)
def test_phases_scale_with_the_epochs(epochs: int, expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(), epochs)] == expected


@pytest.mark.parametrize("after_refine", ["train_all", "frozen_tail"])
def test_the_renewed_classifier_rests_only_in_the_released_code(after_refine: str) -> None:
    method = made(after_refine=after_refine)
    all_phases = phases(method)
    all_phases[-1].enter(None)  # type: ignore[arg-type]
    assert all_phases[-1].optimizers is not None
    owned = {p for group in all_phases[-1].optimizers().groups for p in group["params"]}
    learning = reinitialisation.NETWORK_PARTS if after_refine == "train_all" else reinitialisation.NETWORK_PARTS[:2]

    assert owned == set(reinitialisation.part_parameters(method.network, learning))
    assert owned == {p for p in method.network.parameters() if p.requires_grad}


@pytest.mark.parametrize("confident", [4, 12, 20, 30, 39])
def test_an_epoch_has_as_many_steps_as_one_of_all_images(confident: int) -> None:
    """A batch's unlabelled share is that of the images, at most a half."""
    method = made()
    method.confident.mask.copy_(torch.arange(COUNT) < confident)
    passes = phases(method)[-1].passes
    assert passes is not None
    (one_pass,) = passes()
    size = 8
    rows = size - round(size * one_pass.share)

    assert one_pass.share == min(0.5, (COUNT - confident) / COUNT)
    assert image_store.step_count(len(one_pass.pool), rows) in (COUNT // size, COUNT // size - 1)
    assert one_pass.unlabelled is not None
    assert torch.equal(one_pass.unlabelled, torch.arange(COUNT) >= confident)
    counts = torch.bincount(one_pass.pool, minlength=COUNT)
    assert not counts[confident:].any()
    assert counts[:confident].max() - counts[:confident].min() <= 1


def test_positions_are_repeated_evenly() -> None:
    assert pool_union.repeat_to(torch.tensor([3, 5, 9]), 7).tolist() == [3, 3, 3, 5, 5, 9, 9]
    assert pool_union.repeat_to(torch.tensor([3, 5, 9]), 3).tolist() == [3, 5, 9]


def test_without_suspicious_images_all_are_labelled() -> None:
    method = made()
    passes = phases(method)[-1].passes
    assert passes is not None
    (one_pass,) = passes()

    assert one_pass.unlabelled is None
    assert value(method, batch(unlabelled=None)) > 0


def test_labels_of_unlabelled_images_change_nothing() -> None:
    outcomes = []
    for shift in (0, 1):
        method = made()
        method.confident.labels[8:] = (method.confident.labels[8:] + shift) % CLASSES
        outcomes.append(value(method, batch()))

    assert outcomes[0] == outcomes[1]


def test_given_labels_are_targets_as_they_are_weighed_by_class() -> None:
    """Hardly mixed, with a weight of 0: the weighted cross-entropy of both views, over the number of rows."""
    method = made(alpha_later=1e-6, unlabelled_weight=0.0)
    method.confident.class_weights.copy_(torch.tensor([0.5, 1.0, 3.0, 0.0]))
    seen = batch(unlabelled=None)
    method.train()
    expected = 0.0
    logits = method.network(torch.cat(seen.views))
    labels = seen.labels.repeat(2)
    cross_entropies = functional.cross_entropy(logits, labels, reduction="none")
    expected = float((cross_entropies * method.confident.class_weights[labels]).mean().detach())

    # the rows are the same up to their partners' vanishing share, in the order they came
    assert value(method, seen) == pytest.approx(expected, rel=1e-3)


def test_images_are_mixed_less_from_half_of_the_epochs_on() -> None:
    one, other = made(alpha=4.0, alpha_later=0.75), made(alpha=0.75, alpha_later=0.75)

    assert value(one, batch(149)) != value(other, batch(149))
    assert value(one, batch(150)) == value(other, batch(150))


def test_the_unlabelled_weight_grows_from_the_beginning_of_mixmatch() -> None:
    """At 300 epochs from 25, over 16 epochs."""
    plain = [value(made(unlabelled_weight=0.0), batch(epoch)) for epoch in (25, 33, 41, 140)]
    values = [value(made(unlabelled_weight=100.0), batch(epoch)) for epoch in (25, 33, 41, 140)]
    steps = [later - earlier for later, earlier in zip(values, plain, strict=True)]

    assert steps[0] == 0.0
    assert steps[1] == pytest.approx(steps[2] / 2, rel=1e-3)
    assert steps[2] == pytest.approx(steps[3], rel=1e-3)
    assert steps[2] > 0


def test_suspicious_labels_are_ranked_by_the_guesses() -> None:
    method = made()
    recorded: list[Tensor] = []
    seen = batch()
    assert seen.unlabelled is not None
    guesses = Unlabelled(seen.unlabelled.views, seen.unlabelled.index, recorded.append)
    value(method, batch(unlabelled=guesses))

    assert [tuple(cross_entropies.shape) for cross_entropies in recorded] == [(4, CLASSES)]


def test_steps_follow_all_images(spec: Callable[..., TrainingSpec], labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method="pes_semi", epochs=2, validation_fraction=0.0), labeled)
    steps = [event.steps for event in training if isinstance(event, Step) and event.phase == "mixmatch"]

    assert abs(steps[0] - len(labeled.labels) // 32) <= 1
