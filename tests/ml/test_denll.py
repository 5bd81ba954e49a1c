"""DeNLL: what each network may see, which learns from which, and that every selectable reading works."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
import torch
from torch import Tensor

from ml import methods, networks
from ml.blocks import background, branches, deconfounding, localization, replay_rng
from ml.data import dataset
from ml.method import Batch, TrainHyperparameters
from ml.methods import denll
from ml.scenes import generate
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.ml.conftest import same

SIDE, CLASSES = 16, 3


def made(**params: Any) -> denll.Method:
    torch.manual_seed(0)
    return denll.Method(
        denll.Params(**params), torch.arange(30) % CLASSES, lambda: networks.build("small", CLASSES, SIDE)
    )


def batch(count: int = 12, record_logits: Callable[[Tensor], None] = lambda _: None, epoch: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    labels = torch.arange(count) % CLASSES
    return Batch((images,), labels, torch.arange(count), record_logits, epoch)


def hyperparameters(epochs: int = 10) -> TrainHyperparameters:
    return TrainHyperparameters(epochs, 0.05, 0.9, 5e-4, lambda progress: 1.0)


def parts(method: denll.Method) -> Any:
    """The deconfounder, whose class the type of the method does not tell."""
    return method.deconfounder


def loss_of(method: denll.Method, seen: Batch) -> Tensor:
    method.train()
    return method.phases(hyperparameters())[0].loss(seen)


# --- the split ---


def test_complementary_halves_make_the_image_again() -> None:
    images, mask = torch.randn(4, 3, SIDE, SIDE), torch.rand(4, 1, SIDE, SIDE)
    foreground, own = background.complement(images, mask)

    assert torch.allclose(foreground + own, images, atol=1e-6)


@pytest.mark.parametrize("by_channel", [False, True])
def test_the_median_split_is_the_papers_equation_5(by_channel: bool) -> None:
    images, mask = torch.rand(2, 3, SIDE, SIDE), torch.rand(2, 1, SIDE, SIDE)
    foreground, own = background.median(images, mask, by_channel=by_channel)

    for number, masked in enumerate(mask * images):
        for channel in range(3):
            middle = (masked[channel] if by_channel else masked).median()
            assert torch.equal(foreground[number, channel], torch.relu(masked[channel] - middle))
            assert torch.equal(own[number, channel], torch.relu(-masked[channel] + middle))


@pytest.mark.parametrize(
    ("split", "unit", "by_channel"),
    [("median", True, False), ("median_by_channel", True, True), ("median_normalised", False, False)],
)
def test_equation_5_reads_the_pixels_its_setting_names(split: str, unit: bool, by_channel: bool) -> None:
    method, images = made(split=split, lm="fixed"), torch.randn(2, 3, SIDE, SIDE)
    _, split_images = parts(method).split(images)
    expected = background.median(
        parts(method).unit_range(images) if unit else images,
        localization.central_mask(images),
        by_channel=by_channel,
    )

    assert torch.equal(split_images.foreground, expected.foreground)
    assert torch.equal(split_images.background, expected.background)


@pytest.mark.parametrize("split", ["median", "median_by_channel", "median_normalised"])
def test_by_equation_5_neither_network_sees_what_lies_outside_the_mask(split: str) -> None:
    """Unlike the complementary split, which leaves g1 the whole image."""
    method = made(split=split, lm="fixed")
    loss_of(method, batch())
    method.eval()
    one, other = torch.randn(2, 3, SIDE, SIDE), torch.randn(2, 3, SIDE, SIDE)
    inside = localization.central_mask(one)
    other = inside * one + (1 - inside) * other

    for second in (False, True):
        assert torch.equal(
            method.deconfounder.network_input(one, second=second),
            method.deconfounder.network_input(other, second=second),
        )


def test_the_median_mask_calls_half_of_the_pixels_foreground() -> None:
    images = torch.rand(2, 3, SIDE, SIDE)
    mask = torch.rand(2, 1, SIDE, SIDE, requires_grad=True)
    foreground, own = background.median_mask(images, mask, images)

    assert ((foreground != 0).any(dim=1).float().mean() - 0.5).abs() < 0.01
    assert torch.allclose(foreground + own, images)
    (gradient,) = torch.autograd.grad(foreground.sum(), mask)
    assert gradient.abs().sum() > 0


def test_unit_range_undoes_a_normalisation_once_black_and_white_were_seen() -> None:
    unit = background.UnitRange()
    images = torch.rand(4, 3, 8, 8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0.0, 1.0
    mean, std = torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.2

    assert torch.allclose(unit((images - mean) / std), images, atol=1e-5)


# --- localization ---


@pytest.mark.parametrize("centre", ["linear", "soft_argmax"])
@pytest.mark.parametrize("image_size", [16, 32, 100])
def test_localization_starts_in_the_middle_and_stays_in_its_bounds(centre: Any, image_size: int) -> None:
    module = localization.LocalizationModule(image_size, centre, "bounded", 0.3)
    images = torch.randn(6, 3, image_size, image_size)
    x, y, sigma = module(images).detach().unbind(dim=1)
    middle = (image_size - 1) / 2
    assert torch.allclose(torch.stack([x, y]), torch.tensor(middle), atol=0.05 * image_size)
    assert torch.allclose(sigma, torch.tensor(image_size / 2), rtol=0.05)

    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=30.0)
    x, y, sigma = module(images).detach().unbind(dim=1)
    reach = image_size / 4 if centre == "linear" else image_size / 2
    assert ((torch.stack([x, y]) - middle).abs() <= reach + 1e-3).all()
    assert ((sigma >= 0.2 * image_size - 1e-3) & (sigma <= image_size + 1e-3)).all()


def test_a_fixed_sigma_is_a_share_of_the_side() -> None:
    module = localization.LocalizationModule(32, "soft_argmax", "fixed", 0.14)
    assert torch.allclose(module(torch.randn(3, 3, 32, 32))[:, 2], torch.tensor(0.14 * 32))


def test_the_mask_is_the_gaussian_of_equation_5() -> None:
    mask = localization.gaussian_mask(torch.tensor([[3.0, 5.0, 2.0]]), 9, 8)[0, 0]

    assert mask.shape == (9, 8)
    assert mask[5, 3] == 1.0
    assert mask[7, 4] == pytest.approx(float(torch.exp(torch.tensor(-(1.0 + 4.0) / 8.0))))


def test_homogeneity_is_least_where_the_mask_covers_the_odd_one_out() -> None:
    images = torch.zeros(1, 3, 32, 32) + 0.02 * torch.randn(1, 3, 32, 32)
    images[:, :, 6:16, 15:25] += 1.0
    on, off = (localization.gaussian_mask(torch.tensor([[x, y, 5.0]]), 32, 32) for x, y in ((19.5, 10.5), (8.0, 24.0)))

    assert localization.homogeneity_loss(images, on) < 0.5 * localization.homogeneity_loss(images, off)


# --- the average ---


def test_the_bank_is_a_running_mean_by_class_that_starts_with_the_first_batch() -> None:
    average = background.ClassBackgroundAverage(CLASSES, 4, 0.9)
    first, second = torch.randn(4, 3, 4, 4), torch.randn(2, 3, 4, 4)
    average.update(first, torch.tensor([0, 0, 1, 1]))
    assert torch.allclose(average.averages[0], first[:2].mean(dim=0))
    assert torch.allclose(average.mean()[0], (first[:2].mean(dim=0) + first[2:].mean(dim=0)) / 2, atol=1e-6)

    average.update(second, torch.tensor([1, 2]))
    assert torch.allclose(average.averages[0], first[:2].mean(dim=0))
    assert torch.allclose(average.averages[1], 0.9 * first[2:].mean(dim=0) + 0.1 * second[0], atol=1e-6)
    assert torch.allclose(average.averages[2], second[1])


def test_bank_and_gates_are_f32_whatever_the_networks_precision() -> None:
    """Autocast rounds every product to eight bits, inside a block that only says `.float()` as well."""
    images, labels = torch.randn(40, 3, 4, 4), torch.arange(40) % CLASSES
    records = [deconfounding.Activations(images, torch.randn(5, 6), torch.randn(5, CLASSES)) for _ in range(2)]
    gates = deconfounding.Gates(12)
    torch.nn.init.normal_(gates.linear.weight)
    by_precision = []
    for half in (False, True):
        average = background.ClassBackgroundAverage(CLASSES, 4, 0.9)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            average.update(images, labels)
            by_precision.append([average.averages, *gates(*records)])

    assert all(torch.equal(exact, rounded) for exact, rounded in zip(*by_precision, strict=True))


@pytest.mark.parametrize("kind", ["class_mean", "zero"])
def test_the_second_network_sees_nothing_of_an_images_label(kind: str) -> None:
    """The same image under each given label: if its own class's entry came alone, its logits would differ."""
    method = made(background=kind, lm="fixed")
    parts(method).class_background.update(torch.randn(9, 3, SIDE, SIDE), torch.arange(9) % CLASSES)
    image = torch.randn(1, 3, SIDE, SIDE).expand(CLASSES, -1, -1, -1)
    seen = Batch((image,), torch.arange(CLASSES), torch.arange(CLASSES), lambda _: None)
    with method.deconfounder.step(seen):
        network_input = method.deconfounder.network_input(image, second=True)

    assert torch.allclose(network_input, network_input[:1].expand_as(network_input))


def test_the_mean_background_is_the_same_in_training_and_at_test() -> None:
    method = made(lm="fixed")
    loss_of(method, batch())
    images = torch.randn(2, 3, SIDE, SIDE)
    before = parts(method).class_background.mean().clone()
    method.train()
    trained = method.deconfounder.network_input(images, second=True)
    method.eval()
    tested = method.deconfounder.network_input(images, second=True)

    method.heads(images)
    assert torch.equal(trained, tested)
    assert torch.equal(parts(method).class_background.mean(), before)


def test_g1_sees_the_image_and_g2_its_foreground_before_the_mean_background() -> None:
    method = made(lm="fixed")
    loss_of(method, batch())
    images = torch.randn(2, 3, SIDE, SIDE)
    first = method.deconfounder.network_input(images, second=False)
    second = method.deconfounder.network_input(images, second=True)
    mask = localization.central_mask(images)

    assert torch.equal(first, images)
    assert torch.allclose(second, mask * images + parts(method).class_background.mean())
    inside = mask[0, 0].bool()
    assert torch.allclose(second[:, :, ~inside], parts(method).class_background.mean()[:, :, ~inside].expand(2, -1, -1))


def test_without_dim_or_without_mask_both_networks_see_the_image() -> None:
    images = torch.randn(2, 3, SIDE, SIDE)
    for params in ({"dim": False}, {"lm": "off"}):
        second = made(**params).deconfounder.network_input(images, second=True)
        assert torch.equal(second, images)


# --- who learns from whom ---


def gradients(method: denll.Method, part: str) -> float:
    owners = {"g1": method.base1, "g2": method.base2, "lm": method.deconfounder.localization, "gates": method.gates}
    owner = owners[part]
    assert owner is not None
    return sum((float(p.grad.abs().sum()) for p in owner.parameters() if p.grad is not None), 0.0)


def interaction_loss(method: denll.Method, seen: Batch, agreement_weight: float) -> Tensor:
    """Eq. 6 without the base methods' own losses."""
    with method.deconfounder.step(seen), method.recorders[0].recording(), method.recorders[1].recording():
        method.base1.logits(seen.images), method.base2.logits(seen.images)
        return method.interaction_loss(seen, agreement_weight)


def test_gates_stay_between_a_half_and_one_and_begin_at_three_quarters() -> None:
    method = made()
    record = [
        deconfounding.Activations(torch.zeros(5, 1), torch.randn(5, 96), torch.randn(5, CLASSES)) for _ in range(2)
    ]
    assert method.gates is not None
    o1, o2 = method.gates(*record)
    l1, l2 = record[0].logits, record[1].logits
    assert torch.allclose(o1, 0.75 * l1 + 0.25 * l2)
    assert torch.allclose(o2, 0.75 * l2 + 0.25 * l1)

    for size in (-1e4, 1e4):
        torch.nn.init.constant_(method.gates.linear.bias, size)
        o1, _ = method.gates(*record)
        assert torch.allclose(o1, 0.5 * (l1 + l2) if size < 0 else l1, atol=1e-5)


@pytest.mark.parametrize(("gates", "reached"), [("detached", False), ("joint", True)])
def test_detached_gates_give_the_networks_no_gradient(gates: str, reached: bool) -> None:
    method = made(gates=gates, agreement="off")
    seen = batch()
    interaction_loss(method, seen, 0.0).backward()

    assert gradients(method, "gates") > 0
    assert (gradients(method, "g1") > 0) == reached
    assert (gradients(method, "g2") > 0) == reached


def test_the_gated_loss_is_the_base_methods_on_the_two_gated_predictions_alone() -> None:
    """Eq. 6 as printed, with cross-entropy for L, by the gates' own formula."""
    method = made(loss="gated", gates="joint", agreement="off", lm="fixed")
    assert method.gates is not None
    torch.nn.init.normal_(method.gates.linear.weight)
    seen = batch()
    loss = loss_of(method, seen)
    one, two = (branch.activations(seen.images) for branch in branches.find_branches(method))
    a = 0.5 + 0.5 * torch.sigmoid(method.gates.linear(torch.cat([one.features, two.features], dim=1)))
    o1 = a[:, :1] * one.logits + (1 - a[:, :1]) * two.logits
    o2 = a[:, 1:] * two.logits + (1 - a[:, 1:]) * one.logits
    expected = sum(torch.nn.functional.cross_entropy(gated, seen.labels) for gated in (o1, o2))

    assert float(loss.detach()) == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5)
    loss.backward()
    assert all(gradients(method, part) > 0 for part in ("g1", "g2", "gates"))


def test_gated_predictions_need_gates_through_which_networks_learn() -> None:
    for gates in ("detached", "off"):
        with pytest.raises(pydantic.ValidationError, match="joint"):
            denll.Params(loss="gated", gates=gates)


@pytest.mark.parametrize(("direction", "reached"), [("one_way", False), ("both", True)])
def test_one_way_agreement_teaches_g1_and_leaves_g2_alone(direction: str, reached: bool) -> None:
    method = made(agreement=direction, gates="off", localization="label_free", sigma="fixed")
    seen = batch()
    interaction_loss(method, seen, 3.0).backward()

    assert gradients(method, "g1") > 0
    assert (gradients(method, "g2") > 0) == reached


@pytest.mark.parametrize("fusion", ["composite", "concat"])
def test_label_free_localization_learns_nothing_from_labels(fusion: str) -> None:
    """The given labels reversed: not one bit of what the localization module learns may change."""
    method = made(localization="label_free", sigma="fixed", fusion=fusion, agreement_start=0.0, agreement_ramp=0.0)
    assert method.deconfounder.localization is not None
    seen, grads = batch(), []
    for labels in (seen.labels, seen.labels.flip(0)):
        method.zero_grad()
        loss_of(method, dataclasses.replace(seen, labels=labels)).backward()
        grads.append([p.grad.clone() for p in method.deconfounder.localization.parameters() if p.grad is not None])

    assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))
    assert sum(float(g.abs().sum()) for g in grads[0]) > 0


def test_joint_localization_learns_from_the_loss_on_labels() -> None:
    method = made(localization="joint")
    loss_of(method, batch()).backward()

    assert gradients(method, "lm") > 0


def test_both_hosts_draw_the_same_random_numbers() -> None:
    generator = torch.Generator().manual_seed(3)
    one, two = replay_rng.run_with_same_draws(
        lambda _: generator,
        lambda g: torch.rand(4, generator=g("mixing")),
        lambda g: torch.rand(4, generator=g("mixing")),
    )
    alone = torch.Generator().manual_seed(3)

    assert torch.equal(one, two)
    assert torch.equal(torch.rand(4, generator=alone), one)
    assert torch.equal(generator.get_state(), alone.get_state())


# --- agreement over time, ranking ---


def test_labels_are_ranked_in_every_epoch_by_one_network() -> None:
    """With agreement too: it blurs the ranking less than the late epochs sharpen it."""
    for params in ({}, {"agreement": "one_way"}, {"agreement": "off"}):
        for epoch in (0, 9):
            recorded: list[Tensor] = []
            loss_of(made(**params), batch(record_logits=recorded.append, epoch=epoch))
            assert len(recorded) == 1, params


# --- every reading works ---

READINGS: list[dict[str, Any]] = [
    {},
    *(denll.ABOUT["presets"][name] for name in ("confounded", "paper")),
    *({"split": split} for split in ("median_mask", "median_by_channel", "median_normalised")),
    {"background": "zero", "lm": "fixed"},
    {"gates": "off", "agreement": "off", "answer": "g2"},
    {"agreement": "one_way", "answer": "g1", "lm": "off"},
    {"dim": False, "centre": "soft_argmax"},
    {"host": "ce", "host_params": {"networks": 2, "agreement": "both"}},
    {"loss": "gated", "gates": "joint", "host": "elr_plus"},
    {"loss": "gated", "gates": "joint", "host": "pes"},
]


@pytest.fixture(scope="module")
def pictures() -> dataset.LabeledImages:
    drawn = generate.draw(48, seed=1, image_size=16, noise="ordinary")
    return dataset.LabeledImages(torch.from_numpy(drawn.images), torch.from_numpy(drawn.given_labels), generate.CLASSES)


@pytest.mark.parametrize("params", READINGS, ids=str)
def test_every_reading_trains_resumes_exactly_and_answers(
    params: dict[str, Any], pictures: dataset.LabeledImages
) -> None:
    settings = {"agreement_start": 0.0, "agreement_ramp": 0.0} | params
    spec = TrainingSpec(
        method="denll", params=settings, network="small", image_size=16, epochs=2, batch_size=16, precision="f32"
    )
    training = Trainer.build(spec, pictures, device="cpu", threads=1)
    steps = iter(training)
    for _ in range(2):
        next(steps)
    state = training.state()
    for _ in steps:
        pass
    resumed = Trainer.build(spec, pictures, device="cpu", threads=1)
    resumed.restore(state)
    for _ in resumed:
        pass

    ended, again = training.method.state_dict(), resumed.method.state_dict()
    assert all(torch.equal(ended[name], again[name]) for name in ended)
    method = training.method.eval()
    images = torch.randn(3, 3, 16, 16)
    heads = method.heads(images)
    assert set(heads) == {"answer", "g1", "g2", "mean"}
    assert torch.equal(method.logits(images), heads["answer"])
    assert torch.equal(heads["answer"], heads[settings.get("answer", "mean")])
    assert all(torch.isfinite(logits).all() and logits.shape == (3, 6) for logits in heads.values())
    assert (method.locate(images) is None) == (settings.get("lm", "learned") != "learned")


@pytest.mark.parametrize("host", [name for name in methods.names() if name not in ("denll", "ce")])
def test_every_other_method_can_host(host: str, pictures: dataset.LabeledImages) -> None:
    spec = TrainingSpec(
        method="denll", params={"host": host}, network="small", image_size=16, epochs=4, batch_size=16, precision="f32"
    )
    training = Trainer.build(spec, pictures, device="cpu", threads=1)
    before = {name: parameter.clone() for name, parameter in training.method.named_parameters()}
    state = None
    for _ in training:
        state = state or (training.state() if training.epoch == 3 else None)
    assert state is not None
    resumed = Trainer.build(spec, pictures, device="cpu", threads=1)
    resumed.restore(state)
    for _ in resumed:
        pass

    assert same(training.state().tensors, resumed.state().tensors) == []
    changed = {
        name for name, parameter in training.method.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert any(name.startswith("base1.") for name in changed)
    assert any(name.startswith("base2.") for name in changed)
    takes_steps = "probe" not in host
    assert any(name.startswith("deconfounder.localization.") for name in changed) == takes_steps
    assert any(name.startswith("gates.") for name in changed) == takes_steps
    assert all(torch.isfinite(parameter).all() for parameter in training.method.parameters())


def test_settings_of_the_host_are_checked_and_denll_hosts_no_denll() -> None:
    with pytest.raises(pydantic.ValidationError, match="networks"):
        denll.Params(host="ce", host_params={"networks": 3})
    with pytest.raises(pydantic.ValidationError, match="itself"):
        denll.Params(host="denll")
    assert "denll" not in denll.Params.model_json_schema()["properties"]["host"]["enum"]
