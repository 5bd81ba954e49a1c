"""The training loop: which images it uses, what it reports, what it refuses; and it depends on nothing outside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ml import errors
from ml.data import image_store
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import in_memory
from ml.reports import selftest
from ml.training import devices, inputs, setup
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import halves, reports, same

Specs = Callable[..., TrainingSpec]


def test_every_image_is_seen_once_an_epoch(spec: Specs, labeled: LabeledImages) -> None:
    """Images trained on and images held out are recorded equally often."""
    training = Trainer.build(spec(epochs=2), labeled)
    before = 0.0
    for _ in (event for event in training if isinstance(event, EpochReport)):
        (weight,) = set(training.margins.sums.weights.tolist())
        assert weight > before
        before = weight


def test_held_out_images_are_never_trained_on(spec: Specs, labeled: LabeledImages) -> None:
    """Other pixels in them change no weight."""
    whole = Trainer.build(spec(), labeled)
    repainted = in_memory(labeled.images).clone()
    repainted[whole.held_out] = 0
    other = Trainer.build(spec(), LabeledImages(repainted, labeled.labels, labeled.classes))
    list(whole), list(other)

    assert len(whole.held_out) == 10
    assert same(dict(whole.method.state_dict()), dict(other.method.state_dict())) == []


def test_truth_never_reaches_the_method(spec: Specs, labeled: LabeledImages, truth: Truth) -> None:
    """Law 7: other clean labels, or none, give the same weights."""
    assert truth.test_labels is not None
    lies = Truth(3 - labeled.labels, truth.test_images, 3 - truth.test_labels)
    states = []
    for known in (truth, lies, None):
        training = Trainer.build(spec(), labeled, truth=known)
        list(training)
        states.append(dict(training.method.state_dict()))

    assert same(states[0], states[1]) == same(states[0], states[2]) == []


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(33, 32, 1), (65, 32, 2), (34, 32, 2), (20, 512, 1)])
def test_J4_the_last_batch_trains_whatever_is_left(spec: Specs, count: int, batch_size: int, steps: int) -> None:
    images, labels = halves(count)
    settings = spec(batch_size=batch_size, validation_fraction=0.0, epochs=1)
    training = Trainer.build(settings, LabeledImages(images, labels, tuple("abcd")))

    assert [event.steps for event in training if isinstance(event, Step)] == [steps] * steps
    (weight,) = set(training.margins.sums.weights.tolist())
    assert weight > 0


def test_J4_a_single_image_trains(spec: Specs) -> None:
    images, labels = halves(2)
    training = Trainer.build(spec(validation_fraction=0.5), LabeledImages(images, labels, tuple("abcd")))

    assert all(math.isfinite(report.train_loss) for report in reports(training))


def test_the_seed_determines_the_result(spec: Specs, labeled: LabeledImages) -> None:
    outcomes = []
    for seed in (1, 1, 2):
        training = Trainer.build(spec(seed=seed, method="denll", augmentation="crop_flip"), labeled)
        list(training)
        outcomes.append(dict(training.method.state_dict()))

    assert same(outcomes[0], outcomes[1]) == []
    assert same(outcomes[0], outcomes[2]) != []


def test_other_random_numbers_in_the_process_change_nothing(spec: Specs, labeled: LabeledImages) -> None:
    """Dropout reads torch's global generator: a training sets its own state there, and restores the other."""
    undisturbed = Trainer.build(spec(method="everything"), labeled)
    list(undisturbed)
    disturbed = Trainer.build(spec(method="everything"), labeled)
    torch.manual_seed(5)
    outside = [float(torch.rand(())) for _ in disturbed]
    torch.manual_seed(5)

    assert outside == [float(torch.rand(())) for _ in outside]
    assert same(undisturbed.state().tensors, disturbed.state().tensors) == []


def test_iterating_again_continues(spec: Specs, labeled: LabeledImages) -> None:
    whole, stopped = Trainer.build(spec(), labeled), Trainer.build(spec(), labeled)
    list(whole)
    while stopped.epoch < stopped.epochs:
        next(iter(stopped))

    assert same(whole.state().tensors, stopped.state().tensors) == []


def test_a_checkpoint_that_counts_epochs_from_0_goes_on_from_1(spec: Specs, labeled: LabeledImages) -> None:
    """Reports count from 1, whatever an older checkpoint says, and the training is the same bit for bit."""
    whole, begun, resumed = (Trainer.build(spec(), labeled) for _ in range(3))
    list(whole)
    assert isinstance(next(event for event in begun if isinstance(event, EpochReport)), EpochReport)
    state = begun.state()
    older = [{**report, "epoch": report["epoch"] - 1} for report in state.facts["history"]]
    assert [report["epoch"] for report in older] == [0]
    resumed.restore(dataclasses.replace(state, facts={**state.facts, "history": older}))
    list(resumed)

    assert [report.epoch for report in resumed.history] == list(range(1, resumed.epochs + 1))
    assert [report.epoch for report in resumed.history] == [report.epoch for report in whole.history]
    assert same(whole.state().tensors, resumed.state().tensors) == []


def test_a_state_is_not_changed_by_later_steps(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(), labeled)
    events = iter(training)
    next(events)
    state = training.state()
    snapshots = {name: tensor.clone() for name, tensor in state.tensors.items()}
    list(events)

    assert same(state.tensors, snapshots) == []


def test_F24_a_loss_that_is_not_finite_names_its_epoch(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(), labeled)
    events = iter(training)
    while not isinstance(next(events), EpochReport):
        pass
    with torch.no_grad():
        next(training.method.parameters()).fill_(math.nan)

    with pytest.raises(errors.TrainingDiverged) as raised:
        list(events)
    assert raised.value.epoch == 2  # from 1: the first had ended
    assert raised.value.code == "training_diverged"


def test_F24_weights_that_the_last_step_makes_not_finite_are_refused(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(epochs=1, validation_fraction=0.0), labeled)
    with pytest.raises(errors.TrainingDiverged):  # noqa: PT012  # the events are the training
        for event in training:
            if isinstance(event, Step) and event.step == event.steps - 1:
                with torch.no_grad():
                    next(training.method.parameters())[0] = math.inf
    assert training.history == []


def test_F18_running_out_of_memory_names_a_batch_size() -> None:
    with pytest.raises(errors.OutOfMemory) as raised, devices.catch_failures("a training step", lambda: 50):
        torch.empty(2**50)

    assert raised.value.fitting_batch_size == 48
    assert raised.value.hint == "batch_size 48 should fit"


def test_reports_have_every_head(spec: Specs, labeled: LabeledImages, truth: Truth) -> None:
    pair = spec(params={"networks": 2, "agreement": "both"})
    report = reports(Trainer.build(pair, labeled, truth=truth))[-1]

    assert set(report.noisy_validation) == set(report.test) == {"answer", "g1", "g2", "mean"}
    assert report.noisy_validation["answer"] == report.noisy_validation["mean"]
    assert EpochReport.from_json(report.to_json()) == report
    assert report.images_per_second > 0


def test_held_out_images_are_measured_against_their_clean_labels_too(spec: Specs, labeled: LabeledImages) -> None:
    """By the clean labels that are known, and by no others: a set may have no test split."""
    held_out = Trainer.build(spec(), labeled).held_out
    noisy = labeled.labels.clone()
    noisy[held_out] = (noisy[held_out] + 1) % 4
    clean = torch.full_like(noisy, -1)
    clean[held_out[::2]] = labeled.labels[held_out[::2]]
    given_labels = LabeledImages(labeled.images, noisy, labeled.classes)
    seen = reports(Trainer.build(spec(epochs=10, batch_size=16), given_labels, truth=Truth(clean, None, None)))[-1]
    unknown = reports(Trainer.build(spec(epochs=1), given_labels, truth=Truth(torch.full_like(noisy, -1), None, None)))[
        -1
    ]

    assert seen.clean_validation["answer"].accuracy == 1.0
    assert seen.noisy_validation["answer"].accuracy < 0.5
    assert seen.test == unknown.test == unknown.clean_validation == {}


def test_without_truth_or_validation_there_are_no_scores(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(validation_fraction=0.0), labeled)

    assert [(r.noisy_validation, r.clean_validation, r.test) for r in reports(training)] == [({}, {}, {})] * 3
    assert training.summary()["best_noisy_val"] is None


def test_injected_noise_is_measured_by_the_labels_before_it(spec: Specs, labeled: LabeledImages) -> None:
    """There are none without noise. Early on the network predicts the right labels, not the wrong ones it trains on."""
    noisy = spec(noise={"kind": "pairflip", "rate": 0.4}, epochs=4, batch_size=16)
    training = Trainer.build(noisy, labeled)
    last = reports(training)[-1]
    plain = reports(Trainer.build(spec(epochs=1), labeled))[-1]
    tested = selftest.outcome(training, training.label_issues(), labeled.labels)

    assert plain.before_noise == plain.memorised == {}
    assert selftest.outcome(Trainer.build(spec(), labeled), None, labeled.labels) is None
    assert last.before_noise["answer"].accuracy > 0.8 > last.noisy_validation["answer"].accuracy
    assert last.memorised["answer"].accuracy < 0.5
    assert tested is not None
    assert (tested["noise"], tested["rate"], tested["realised_rate"]) == ("pairflip", 0.4, training.noise_rate)
    assert (tested["memorised"], tested["held_out_accuracy"]) == (
        last.memorised["answer"].accuracy,
        last.before_noise["answer"].accuracy,
    )
    assert min(tested["auroc"], tested["average_precision"], tested["precision_at_count"]) > 0.7


def test_memorised_labels_are_changed_ones_that_were_trained_on(labeled: LabeledImages) -> None:
    given_labels, held_out = labeled.labels.clone(), torch.arange(0, 97, 2)
    given_labels[:10] = (given_labels[:10] + 1) % 4
    pixels = image_store.ImageStore(
        in_memory(labeled.images), torch.zeros(3), torch.ones(3), device=torch.device("cpu")
    )
    parts = setup.evaluation_splits(None, inputs.of_pictures(pixels, None), given_labels, held_out, labeled)
    rows, _, labels = next(iter(parts["memorised"]))

    assert rows.tolist() == [1, 3, 5, 7, 9]
    assert labels.equal(given_labels[rows])
    assert next(iter(parts["before_noise"]))[2].equal(labeled.labels[held_out])


def test_the_rate_follows_the_schedule(spec: Specs, labeled: LabeledImages) -> None:
    """The last of the 3 steps of an epoch has progress (epoch + 2/3) / epochs."""
    expected = {"constant": [0.05] * 4, "multistep": [0.05, 0.05, 0.005, 0.0005]}
    expected["cosine"] = [0.025 * (1 + math.cos(math.pi * (epoch + 2 / 3) / 4)) for epoch in range(4)]
    for schedule, rates in expected.items():
        result = [r.learning_rate for r in reports(Trainer.build(spec(epochs=4, schedule=schedule), labeled))]
        assert result == pytest.approx(rates)


def test_the_rate_may_move_once_an_epoch(spec: Specs, labeled: LabeledImages) -> None:
    """As torch's CosineAnnealingLR does, whose first epoch has the full rate in every step."""
    training = Trainer.build(spec(epochs=4, schedule="cosine", schedule_unit="epoch", floor=0.1), labeled)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4, eta_min=0.005)
    for event in training:
        assert training.optimizers.groups[0]["lr"] == pytest.approx(torchs.get_last_lr()[0])
        if isinstance(event, EpochReport):
            optimizer.step()
            torchs.step()


def test_bf16_trains_and_its_losses_are_f32(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(precision="bf16", method="denll", epochs=1), labeled)

    assert all(report.finite for report in reports(training))
    assert {p.dtype for p in training.method.parameters()} == {torch.float32}


def test_injected_noise_is_reported_as_realised(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(noise={"kind": "pairflip", "rate": 0.4}), labeled)

    assert training.noise_rate == pytest.approx(float((training.labels != labeled.labels).double().mean()))
    assert (training.noise_rate or 0.0) > 0.2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"classes": ("a",)}, "too_few_classes"),
        ({"classes": tuple("abc")}, "unknown_class"),
        ({"images": torch.zeros(97, 8, 8, 3, dtype=torch.uint8)}, "wrong_image_size"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "no_images"),
    ],
)
def test_unusable_data_is_refused(spec: Specs, labeled: LabeledImages, change: dict[str, object], code: str) -> None:
    data = {"images": labeled.images, "labels": labeled.labels, "classes": labeled.classes} | change
    with pytest.raises(errors.UnusableData) as raised:
        Trainer.build(spec(), LabeledImages(**data))  # type: ignore[arg-type]

    assert raised.value.code == code


@pytest.mark.parametrize(
    ("change", "code"),
    [({"method": "nothing"}, "unknown_method"), ({"network": "nothing"}, "unknown_network"),
     ({"pretrained": True}, "missing_weights")],
)  # fmt: skip
def test_unknown_names_are_refused(spec: Specs, labeled: LabeledImages, change: dict[str, object], code: str) -> None:
    with pytest.raises(errors.Failure) as raised:
        Trainer.build(spec(**change), labeled)

    assert raised.value.code == code


def test_another_spec_or_other_data_cannot_be_resumed(spec: Specs, labeled: LabeledImages) -> None:
    state = Trainer.build(spec(), labeled).state()
    other = LabeledImages(labeled.images, 3 - labeled.labels, labeled.classes)

    for training in (Trainer.build(spec(seed=1), labeled), Trainer.build(spec(), other)):
        with pytest.raises(errors.CheckpointInvalid):
            training.restore(state)


def test_losses_are_those_of_before(spec: Specs, labeled: LabeledImages) -> None:
    """Golden values: a change that alters results has to change this line and give the reason."""
    noisy = spec(params={"networks": 2, "agreement": "both"}, noise={"kind": "symmetric", "rate": 0.3}, seed=3)

    assert [r.train_loss for r in reports(Trainer.build(noisy, labeled))] == pytest.approx(
        [2.8017, 2.4757, 2.1848], rel=1e-2
    )


def test_injected_noise_leaves_no_label_confirmed(spec: Specs, labeled: LabeledImages) -> None:
    """A label that a person has confirmed may be the one that noise has changed; it is still what tells the truth."""
    confirmed = replace(labeled, confirmed=torch.ones(len(labeled), dtype=torch.bool))
    trusting = Trainer.build(spec(validation_fraction=0.25), confirmed)
    tested = Trainer.build(spec(validation_fraction=0.25, noise={"kind": "symmetric", "rate": 0.4}), confirmed)

    assert trusting.confirmed is confirmed.confirmed
    assert tested.confirmed is None
    pixels = image_store.ImageStore(
        in_memory(labeled.images), torch.zeros(3), torch.ones(3), device=torch.device("cpu")
    )
    held_out = torch.arange(20)
    parts = setup.evaluation_splits(None, inputs.of_pictures(pixels, None), tested.labels, held_out, confirmed)
    assert next(iter(parts["clean_validation"]))[2].equal(labeled.labels[held_out])
