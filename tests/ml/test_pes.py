"""PES: which part is trained when, which labels are selected, and the weights of classes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml import networks
from ml.blocks import confidence, losses, reinitialisation, schedules
from ml.data.dataset import LabeledImages
from ml.method import Phase, TrainHyperparameters
from ml.methods import pes
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.ml.conftest import CLASSES, SIDE, halves
from tests.ml.context import FixedContext

COUNT = 40


def made(**params: Any) -> pes.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return pes.Method(pes.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: pes.Method, epochs: int = 200, factor: Callable[[float], float] = schedules.constant) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.1, 0.9, 1e-4, factor)))


def owned(phase: Phase) -> set[nn.Parameter]:
    assert phase.optimizers is not None
    return {parameter for group in phase.optimizers().groups for parameter in group["params"]}


def of(method: pes.Method, *parts: str) -> set[nn.Parameter]:
    return set(reinitialisation.part_parameters(method.network, parts))


def state(method: pes.Method, part: str) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in getattr(method.network, part).state_dict().items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[name], other[name]) for name in one)


def all_predicted() -> FixedContext:
    """Every given label is predicted."""
    return FixedContext(losses.one_hot(torch.arange(COUNT) % CLASSES, CLASSES))


# --- phases ---


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(200, [25, 7, 5, 163]), (10, [1, 1, 1, 7]), (4, [1, 1, 1, 1]), (3, [1, 1, 1]), (2, [1, 1]), (1, [1])],
)
def test_phases_scale_with_the_epochs_and_the_renewals_are_dropped_first(epochs: int, expected: list[int]) -> None:
    all_phases = phases(made(), epochs)

    assert [phase.epochs for phase in all_phases] == expected
    assert all_phases[0].name == "warm-up"
    assert epochs == 1 or all_phases[-1].name == "confident"


def test_each_stage_renews_its_parts_and_trains_them_alone() -> None:
    """Algorithm 1: last stage and classifier, then the classifier once more, then everything."""
    method = made()
    all_phases = phases(method)
    for phase, renewed in zip(
        all_phases, ((), reinitialisation.LATER_PARTS, reinitialisation.LATER_PARTS[1:], ()), strict=True
    ):
        before = {part: state(method, part) for part in reinitialisation.NETWORK_PARTS}
        phase.enter(all_predicted())

        assert {part for part in reinitialisation.NETWORK_PARTS if differing(before[part], state(method, part))} == set(
            renewed
        )
        learning = renewed or reinitialisation.NETWORK_PARTS
        assert {p for p in method.network.parameters() if p.requires_grad} == of(method, *learning)
        assert owned(phase) == of(method, *learning)


def test_a_renewed_part_forgets_its_batch_statistics() -> None:
    method = made()
    method.network.last_stage[1].running_mean.fill_(7.0)  # type: ignore[index]
    phases(method)[1].enter(all_predicted())

    assert not method.network.last_stage[1].running_mean.any()  # type: ignore[index]


def test_the_released_codes_tail_rests_after_its_renewal() -> None:
    method = made(after_refine="frozen_tail")
    all_phases = phases(method)
    for phase in all_phases:
        phase.enter(all_predicted())

    assert owned(all_phases[-1]) == of(method, "body")
    assert {p for p in method.network.parameters() if p.requires_grad} == of(method, "body")


def test_without_a_new_last_stage_only_the_classifier_is_renewed() -> None:
    method = made(refine_last_stage=0.0, after_refine="frozen_tail")
    all_phases = phases(method)
    before = state(method, "last_stage")
    for phase in all_phases:
        phase.enter(all_predicted())

    assert [phase.name for phase in all_phases] == ["warm-up", "refine classifier", "confident"]
    assert not differing(before, state(method, "last_stage"))
    assert owned(all_phases[-1]) == of(method, "body", "last_stage")


def test_the_schedule_counts_through_and_adam_stands_still() -> None:
    all_phases = phases(made(), 200, lambda progress: 1.0 - progress)
    begun = 0
    for phase in all_phases:
        assert phase.optimizers is not None
        own = phase.optimizers()
        assert own.factor(0.0) == pytest.approx(1.0 - begun / 200)
        assert (own.constant_rate == own.members) == phase.name.startswith("refine")
        begun += phase.epochs
        assert own.factor(1.0) == pytest.approx(1.0 - begun / 200)


def test_adam_has_the_published_rate_in_the_published_steps_and_more_in_fewer() -> None:
    assert reinitialisation.rescaled_learning_rate(1e-4, reinitialisation.PUBLISHED_STEPS) == 1e-4
    assert reinitialisation.rescaled_learning_rate(1e-4, 7 * 351) == 1e-4
    assert reinitialisation.rescaled_learning_rate(1e-4, reinitialisation.PUBLISHED_STEPS // 5) == pytest.approx(5e-4)
    assert reinitialisation.rescaled_learning_rate(1e-4, 1) == reinitialisation.MAX_LEARNING_RATE
    assert reinitialisation.rescaled_learning_rate(0.05, 1) == 0.05


# --- who is trusted ---


def test_confident_are_the_images_whose_given_label_is_predicted() -> None:
    method = made()
    answers = torch.rand(COUNT, CLASSES, generator=torch.Generator().manual_seed(1))
    context = FixedContext(answers)
    phases(method)[-1].begin_epoch(context)
    expected = answers.argmax(dim=1) == method.confident.labels

    assert context.views == 2
    assert torch.equal(method.confident.mask, expected)
    passes = phases(method)[-1].passes
    assert passes is not None
    assert torch.equal(passes()[0].pool, expected)


def test_a_class_that_would_starve_keeps_its_last_confident_images() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    before = torch.tensor([1, 0, 1, 0, 0, 1]).bool()
    chosen = torch.tensor([0, 1, 0, 0, 1, 1]).bool()

    assert confidence.fill_empty_classes(chosen, before, labels, 4).tolist() == [False, True, True, False, True, True]


def test_nothing_confident_at_first_falls_back_to_all_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    chosen = confidence.ConfidentSamples(torch.arange(COUNT) % CLASSES, CLASSES)
    context = FixedContext(losses.one_hot((chosen.labels + 1) % CLASSES, CLASSES))
    with caplog.at_level(logging.INFO, logger=confidence.log.name):
        chosen.select(context, networks.build("small", CLASSES, SIDE))

    assert chosen.mask.all()
    assert "[10, 10, 10, 10]" in caplog.text
    assert "[0, 1, 2, 3]" in caplog.text


# --- what a class weighs ---


def test_class_weights_have_the_reference_values() -> None:
    counts = torch.tensor([100, 50, 10, 0])

    assert confidence.balancing_weights(counts).tolist() == pytest.approx([0.5333, 1.0667, 5.3333, 0], abs=1e-4)
    assert confidence.balancing_weights(counts, 3.0).tolist() == pytest.approx([0.5333, 1.0667, 3, 0], abs=1e-4)


def test_the_loss_is_the_weighted_mean_and_no_weight_is_no_loss() -> None:
    logits, labels = torch.randn(8, CLASSES), torch.arange(8) % CLASSES
    weights = torch.tensor([0.5, 1.0, 5.0, 0.0])
    expected = functional.cross_entropy(logits, labels, weight=weights)

    assert float(losses.weighted_cross_entropy(logits, labels, weights)) == pytest.approx(float(expected))
    assert float(losses.weighted_cross_entropy(logits, labels, torch.zeros(CLASSES))) == 0.0


def test_weights_follow_the_confident_images() -> None:
    method = made()
    answers = losses.one_hot(method.confident.labels, CLASSES)
    answers[:20] = answers[:20].roll(1, dims=1)  # half of every class is predicted wrongly
    answers[:2] = losses.one_hot(method.confident.labels[:2], CLASSES)
    context = FixedContext(answers)
    phases(method)[-1].begin_epoch(context)
    counts = torch.tensor([6.0, 6.0, 5.0, 5.0])

    assert method.confident.class_weights.tolist() == pytest.approx((5.5 / counts).tolist())


# --- altogether ---


def test_it_leaves_out_the_wrong_labels(spec: Callable[..., TrainingSpec]) -> None:
    images, clean = halves(160, seed=2)
    noise = {"kind": "symmetric", "rate": 0.4}
    settings = spec(method="pes", epochs=6, batch_size=16, validation_fraction=0.0, noise=noise)
    training = Trainer.build(settings, LabeledImages(images, clean, tuple("abcd")))
    wrong = training.labels != clean
    reports = [event for event in training if isinstance(event, EpochReport)]
    assert isinstance(training.method, pes.Method)
    trusted = training.method.confident.mask

    assert [report.phase for report in reports][:3] == ["warm-up", "refine last stage", "refine classifier"]
    assert wrong[~trusted].float().mean() > 0.8
    assert wrong[trusted].float().mean() < 0.1
