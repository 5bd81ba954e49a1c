"""ELR+: which network is the teacher of which, what a step updates, and the weights of the average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ml import networks
from ml.blocks import early_learning, ema, losses, schedules
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters, take_gradient_step
from ml.methods import elr_plus
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import CLASSES, SIDE, reports

Specs = Callable[..., TrainingSpec]
COUNT = 16


def made(**params: Any) -> elr_plus.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return elr_plus.Method(elr_plus.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phase(method: elr_plus.Method) -> Phase:
    return method.phases(TrainHyperparameters(10, 0.05, 0.9, 5e-4, lambda progress: 1.0))[0]


def batch(
    pass_index: int = 0, progress: float = 0.3, record_logits: Callable[[Tensor], None] = lambda _: None
) -> Batch:
    images = torch.randn(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(2)
    return Batch(
        (images,),
        torch.arange(8) % CLASSES,
        torch.arange(8),
        record_logits,
        progress=progress,
        pass_index=pass_index,
        generator=lambda _: draws,
    )


def values(module: nn.Module) -> Tensor:
    return torch.cat([value.detach().float().flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize("pass_index", [0, 1])
def test_a_step_moves_one_network_its_average_and_its_memory(pass_index: int) -> None:
    method = made()
    method.train()
    learners = (method.one, method.two)
    only, seen = phase(method), batch(pass_index)
    before = [[values(part) for part in (learner.network, learner.average, learner.memory)] for learner in learners]
    named = learners[1 - pass_index].network.named_parameters()
    weights = {name: learners[1 - pass_index].average.network.get_buffer(name).clone() for name, _ in named}
    assert only.optimizers is not None
    take_gradient_step(only.loss(seen), only.optimizers())
    only.after_step(seen)

    own, other = learners[pass_index], learners[1 - pass_index]
    for part, old in zip((own.network, own.average, own.memory), before[pass_index], strict=True):
        assert not torch.equal(values(part), old)
    assert torch.equal(values(other.network), before[1 - pass_index][0])
    assert torch.equal(values(other.memory), before[1 - pass_index][2])
    for name, weight in weights.items():  # the teacher's batch statistics move as it answers, its weights do not
        assert torch.equal(other.average.network.get_buffer(name), weight)
    assert own.memory.values[8:].eq(0).all()


def test_the_others_average_answers_for_the_memory_and_for_the_ranking() -> None:
    method = made()
    observed: list[Tensor] = []
    method.train()
    seen = batch(record_logits=observed.append)
    phase(method).loss(seen)
    answers = method.two.average(seen.images)

    torch.testing.assert_close(observed[0], answers)
    torch.testing.assert_close(method.one.memory.values[:8], 0.3 * answers.softmax(dim=1))
    assert not answers.requires_grad


def test_unmixed_it_is_elrs_loss() -> None:
    """A tiny alpha draws λ = 1."""
    method = made(alpha=1e-3, target_kept=0.5)
    method.train()
    seen = batch()
    results = float(phase(method).loss(seen).detach())
    with torch.no_grad():
        logits = method.one.network(seen.images)
        held = early_learning.regularization(early_learning.clipped_softmax(logits), method.one.memory.values[:8])

        assert results == pytest.approx(float(losses.cross_entropy(logits, seen.labels) + 3 * held), rel=1e-4)


def test_refined_labels_count_as_the_memory_agrees() -> None:
    """Half and half, the label that the memory finds likelier wins; unmixed labels have nothing to win against."""
    mixed, plain = ([made(alpha=alpha, weight=0.0, refined=r) for r in (False, True)] for alpha in (100.0, 1e-3))
    results = [[float(phase(method).loss(batch()).detach()) for method in pair] for pair in (mixed, plain)]

    assert abs(results[0][0] - results[0][1]) > 1e-4
    assert results[1][0] == pytest.approx(results[1][1], rel=1e-3)


def test_the_averages_weight_follows_the_reference() -> None:
    weights = [0.997 * schedules.gaussian_ramp(step, 40_000) for step in (0, 10_000, 20_000, 40_000, 70_000)]

    assert [round(weight, 5) for weight in weights] == [0.00672, 0.05987, 0.28565, 0.997, 0.997]


def test_the_regularizers_weight_grows_where_asked_to() -> None:
    results = {}
    for share in (0.0, 0.5):
        for progress in (0.0, 0.9):
            held, free = made(weight_ramp=share), made(weight=0.0)
            losses_ = [float(phase(learner).loss(batch(progress=progress)).detach()) for learner in (held, free)]
            results[share, progress] = losses_[0] - losses_[1]

    assert results[0.0, 0.0] == pytest.approx(results[0.5, 0.9], rel=1e-3)
    assert results[0.5, 0.0] / results[0.0, 0.0] == pytest.approx(0.0067, rel=0.05)


def test_averages_have_no_parameters_and_all_are_saved() -> None:
    method = made()
    trained = {name for name, _ in method.named_parameters()}

    assert trained == {
        f"{learner}.network.{n}" for learner in ("one", "two") for n, _ in method.one.network.named_parameters()
    }
    assert {name.replace(".network.", ".average.network.") for name in trained} <= set(method.state_dict())


def test_equal_averaging_is_the_mean_of_all_weights_so_far() -> None:
    average = ema.WeightEma(nn.Linear(2, 1, bias=False))
    one = nn.Linear(2, 1, bias=False)
    for number in range(1, 5):
        one.weight.data.fill_(float(number))
        average.update(one, average.equal_momentum(0.9999))

    torch.testing.assert_close(average.network.weight, torch.full((1, 2), 2.5))


def test_balanced_subsets_show_every_class_as_often_and_change_with_the_epoch(
    spec: Specs, labeled: LabeledImages
) -> None:
    training = Trainer.build(spec(method="elr_plus", params={"epoch_images": 30}, epochs=2), labeled)
    counts = []
    for _ in reports(training):
        passes = training.phases[0].passes
        assert passes is not None
        pools = [one_pass.pool for one_pass in passes()]
        counts += [training.batches.labels[pool].bincount().tolist() for pool in pools]
        counts.append(pools[0].tolist())

    assert counts[:2] == [[8] * CLASSES] * 2
    subset: Any = training.method.get_submodule("one").subset
    assert subset is not None
    first = subset.positions.clone()
    subset.draw(torch.Generator().manual_seed(5))
    assert not torch.equal(first, subset.positions)


def test_denll_hosts_it(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method="denll", params={"host": "elr_plus"}, epochs=2, batch_size=48), labeled)

    assert all(report.finite for report in reports(training))
