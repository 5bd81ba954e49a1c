"""DivideMix: which network trains on which division; labels of unlabelled images do not count; shares of epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ml import networks
from ml.blocks import losses
from ml.data.dataset import LabeledImages
from ml.method import Batch, Phase, TrainHyperparameters, Unlabelled
from ml.methods import dividemix
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import CLASSES, SIDE, halves, reports
from tests.ml.context import FixedContext

Specs = Callable[..., TrainingSpec]
COUNT = 40


def made(**params: Any) -> dividemix.Method:
    torch.manual_seed(0)
    labels = torch.arange(COUNT) % CLASSES
    return dividemix.Method(dividemix.Params(**params), labels, lambda: networks.build("small", CLASSES, SIDE))


def phases(method: dividemix.Method, epochs: int = 30) -> list[Phase]:
    return list(method.phases(TrainHyperparameters(epochs, 0.05, 0.9, 5e-4, lambda progress: 1.0)))


def batch(pass_index: int = 0, **changes: Any) -> Batch:
    """Eight labelled and eight unlabelled images, two views each."""
    source = torch.Generator().manual_seed(1)
    views = torch.randn(4, 8, 3, SIDE, SIDE, generator=source)
    mixing = torch.Generator().manual_seed(2)
    unlabelled = Unlabelled((views[2], views[3]), torch.arange(8, 16), lambda _: None)
    settings: dict[str, Any] = {
        "views": (views[0], views[1]),
        "labels": torch.arange(8) % CLASSES,
        "index": torch.arange(8),
        "record_logits": lambda _: None,
        "epoch": 20,
        "progress": 20 / 30,
        "pass_index": pass_index,
        "unlabelled": unlabelled,
        "generator": lambda _: mixing,
    }
    return Batch(**settings | changes)


class RandomImages(FixedContext):
    """A context that scores images of random pixels, the same each time."""

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        with torch.no_grad():
            return function(torch.randn(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("pass_index", [0, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_a_pass_trains_its_own_network_and_no_other(pass_index: int, number: int) -> None:
    method = made()
    method.train()
    phases(method)[number].loss(batch(pass_index)).backward()

    for k, network in enumerate(method.networks):
        assert all((p.grad is not None) == (k == pass_index) for p in network.parameters())


def test_each_network_learns_from_the_other_ones_division() -> None:
    method = made()
    method.clean_probability[0] = (torch.arange(COUNT) < 10).float()
    method.clean_probability[1] = (torch.arange(COUNT) >= 15).float()
    passes = phases(method)[1].passes
    assert passes is not None
    first, second = passes()

    assert first.pool.nonzero()[:, 0].tolist() == list(range(15, COUNT))
    assert second.pool.nonzero()[:, 0].tolist() == list(range(10))
    for one_pass in (first, second):
        assert one_pass.unlabelled is not None
        assert torch.equal(one_pass.unlabelled, ~one_pass.pool)
        assert one_pass.share == 0.5


def test_trust_in_a_label_comes_from_the_other_network() -> None:
    """Full trust keeps the given label; none leaves the network's own answer: only the other's trust moves the loss."""
    outcomes = {}
    for owner in (0, 1):
        method = made(unlabelled_weight=0.0)
        plain = float(phases(method)[1].loss(batch()).detach())
        method.clean_probability[owner] = 0.0
        outcomes[owner] = (plain, float(phases(method)[1].loss(batch()).detach()))

    assert outcomes[0][0] == outcomes[0][1]
    assert outcomes[1][0] != outcomes[1][1]


def test_labels_of_unlabelled_images_change_nothing() -> None:
    outcomes = []
    for shift in (0, 1):
        method = made()
        method.labels[8:] = (method.labels[8:] + shift) % CLASSES
        outcomes.append(float(phases(method)[1].loss(batch()).detach()))

    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("clean_probability", [0.0, 1.0])
def test_a_division_that_trusts_all_or_none_trains_plainly_on_all(clean_probability: float) -> None:
    method = made()
    method.clean_probability.fill_(clean_probability)
    phase = phases(method)[1]
    assert phase.passes is not None
    for one_pass in phase.passes():
        assert one_pass.unlabelled is None
        assert one_pass.pool.all()

    seen = batch(unlabelled=None)
    expected = float(losses.cross_entropy(method.networks[0](seen.images), seen.labels).detach())
    assert float(phase.loss(seen).detach()) == expected


def test_a_division_calls_small_losses_clean_and_averages_over_epochs() -> None:
    method = made(averaged_epochs=2)
    divide = phases(method)[1].begin_epoch
    method.eval()
    context = RandomImages()
    divide(context)
    logits = context.score(method.networks[0])
    plain = losses.cross_entropies(logits, method.labels)
    scaled = (plain - plain.min()) / (plain.max() - plain.min())

    assert torch.allclose(method.losses[-1, 0], scaled, atol=1e-6)
    assert method.losses[0].isnan().all()
    trusted = method.clean_probability[0] > 0.5
    assert plain[trusted].max() < plain[~trusted].min()

    once = method.clean_probability[0].clone()
    method.losses[-1, 0] = scaled.flip(0)
    divide(context)
    assert torch.equal(method.losses[0, 0], scaled.flip(0))
    assert not torch.equal(method.clean_probability[0], once)


def test_the_penalty_of_the_warm_up_is_the_negative_entropy() -> None:
    method = made(warm_up_penalty=1.0)
    seen = batch()
    logits = method.networks[0](seen.images)
    expected = losses.cross_entropy(logits, seen.labels) + losses.negative_entropy(logits)

    assert float(phases(method)[0].loss(seen).detach()) == pytest.approx(float(expected.detach()))


def test_the_unlabelled_weight_grows_with_progress_and_then_stays() -> None:
    """At 300 epochs: 0 at the end of the warm-up of 10, full 16 epochs later."""
    method = made(unlabelled_weight=1000.0)
    phase = phases(method, 300)[1]
    losses_by_epoch = [float(phase.loss(batch(progress=epoch / 300)).detach()) for epoch in (10, 18, 26, 200)]
    steps = [later - earlier for earlier, later in pairwise(losses_by_epoch)]

    assert steps[0] == pytest.approx(steps[1], rel=1e-3)
    assert steps[0] > 0
    assert steps[2] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(300, 1 / 30, [10, 290]), (300, 0.1, [30, 270]), (30, 1 / 30, [1, 29]), (4, 0.0, [1, 3]), (5, 1.0, [5])],
)  # fmt: skip
def test_phases_scale_with_the_epochs(epochs: int, share: float, expected: list[int]) -> None:
    assert [phase.epochs for phase in phases(made(warm_up=share), epochs)] == expected


def test_the_answer_orders_classes_as_the_sum_of_both_networks() -> None:
    method = made().eval()
    images = torch.randn(5, 3, SIDE, SIDE)
    heads = method.heads(images)

    assert torch.equal(heads["answer"].argsort(dim=1), (heads["g1"] + heads["g2"]).argsort(dim=1))


def test_bf16_reaches_every_parameter_though_guesses_come_first(spec: Specs, labeled: LabeledImages) -> None:
    """Weights cast while guessing without gradients must not be used again with them."""
    training = Trainer.build(spec(method="dividemix", precision="bf16", epochs=2), labeled)
    for event in training:
        if isinstance(event, EpochReport):
            before = {name: p.detach().clone() for name, p in training.method.named_parameters()}
        elif event.phase == "mixmatch" and event.step == event.steps - 1:
            unmoved = [name for name, p in training.method.named_parameters() if torch.equal(p, before[name])]

    assert unmoved == []


def test_its_division_finds_the_wrong_labels(spec: Specs) -> None:
    images, clean = halves(160, seed=2)
    noise = {"kind": "symmetric", "rate": 0.4}
    settings = spec(method="dividemix", epochs=8, batch_size=16, validation_fraction=0.0, noise=noise)
    training = Trainer.build(settings, LabeledImages(images, clean, tuple("abcd")))
    wrong = training.labels != clean
    list(training)
    assert isinstance(training.method, dividemix.Method)
    trusted = training.method.clean_probability.mean(dim=0) > 0.5

    assert wrong[~trusted].float().mean() > 0.8
    assert wrong[trusted].float().mean() < 0.1


def test_steps_follow_the_labelled_images_of_both_turns(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method="dividemix", epochs=2), labeled)
    assert isinstance(training.method, dividemix.Method)
    steps: Iterator[Step] = (event for event in training if isinstance(event, Step) and event.phase == "mixmatch")
    first = next(steps)
    pools = training.method.clean_probability > 0.5
    expected = 0
    for trusted in (pools[1], pools[0]):
        labelled = int(trusted.sum()) if 0 < int(trusted.sum()) < len(trusted) else None
        if labelled is None:
            expected += max(1, -(-(len(trusted) - 1) // 32))
        else:
            rows = 32 - min(16, max(2, len(trusted) - labelled))
            expected += max(1, -(-(labelled - 1) // rows))

    assert first.steps == expected
    assert reports(training)[-1].finite
