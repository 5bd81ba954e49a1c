"""Laws that every method obeys: a new file in `ml/methods` is tested here without a line of its own."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ml import methods
from ml.blocks import pool_union
from ml.data.dataset import LabeledImages, Truth
from ml.data.stored_rows import StoredRows
from ml.method import Batch, Method, Pass, Phase
from ml.training import checkpoint
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import EXTRA_METHODS, SIDE, halves, reports, same

Specs = Callable[..., TrainingSpec]
NAMES = [*methods.names(), *(file.stem for file in EXTRA_METHODS.glob("*.py"))]
every_method = pytest.mark.parametrize("method", NAMES)
published = pytest.mark.parametrize("method", methods.names())
WITHOUT_STEPS = {"probe", "forward_probe"}  # solve for their weights when an epoch begins
with_steps = pytest.mark.parametrize("method", [name for name in NAMES if name not in WITHOUT_STEPS])
WITHOUT_LABELS = {"cores_star", "dividemix", "pes_semi", "everything"}  # show images beside those that they trust


@published
def test_its_idea_has_two_sentences(method: str) -> None:
    idea = methods.load(method).ABOUT["idea"]

    assert idea.endswith(".")
    assert idea.count(". ") == 1


@every_method
def test_losses_are_finite_and_every_trained_parameter_moves(
    method: str, spec: Specs, labeled: LabeledImages, truth: Truth
) -> None:
    training = Trainer.build(spec(method=method, epochs=3), labeled, truth=truth)
    before = {name: p.detach().clone() for name, p in training.method.named_parameters()}

    results = reports(training)
    assert all(report.finite and report.train_loss != 0 for report in results)
    assert {math.isfinite(report.train_loss) for report in results} == {method not in WITHOUT_STEPS}
    moved = {name for name, p in training.method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in training.method.named_parameters() if p.requires_grad}


@every_method
@pytest.mark.parametrize(("count", "classes", "epochs"), [(5, 2, 1), (17, 5, 2)])
def test_a_tiny_set_is_learned_from_all_the_same(
    method: str, count: int, classes: int, epochs: int, spec: Specs
) -> None:
    """Nothing held out; fewer images than a batch, or a class that no image has, since `halves` has four."""
    images, labels = halves(count)
    few = LabeledImages(images, labels % classes, tuple("abcde"[:classes]))
    training = Trainer.build(spec(method=method, epochs=epochs, batch_size=30, validation_fraction=0.0), few)

    results = reports(training)
    assert len(results) == epochs
    assert {math.isfinite(report.train_loss) for report in results} == {method not in WITHOUT_STEPS}
    assert all(bool(torch.isfinite(parameter).all()) for parameter in training.method.parameters())
    assert training.label_issues() is not None


@every_method
def test_a_killed_training_ends_bit_identical(
    method: str, spec: Specs, labeled: LabeledImages, truth: Truth, tmp_path: Path
) -> None:
    settings = spec(method=method, epochs=4, noise={"kind": "symmetric", "rate": 0.3}, augmentation="crop_flip")
    whole = Trainer.build(settings, labeled, truth=truth)
    states = [whole.state() for _ in whole]
    expected = whole.state()

    for number in np.random.RandomState(len(method)).choice(len(states), 4, replace=False):
        folder = tmp_path / str(number)
        checkpoint.write(folder, states[number])
        results = checkpoint.newest([folder], config_hash=whole.config_hash, data_hash=whole.data_hash)
        assert results.state is not None
        resumed = Trainer.build(settings, labeled, truth=truth)
        resumed.restore(results.state)
        list(resumed)

        assert same(expected.tensors, resumed.state().tensors) == []
        assert timeless(resumed) == timeless(whole)


@every_method
def test_images_from_disk_train_to_the_same_bits(method: str, spec: Specs) -> None:
    """A streamed training, stopped in the middle and resumed, ends as one that holds its images in memory."""
    images, labels = halves(53)
    stored = StoredRows.write_unnamed([images.numpy()], SIDE, None)
    settings = spec(method=method, epochs=2, batch_size=16, augmentation="crop_flip")
    on_disk = LabeledImages(stored.part(0, 40), labels[:40], tuple("abcd"))
    test = Truth(None, stored.part(40, 53), labels[40:])

    def build(resident_bytes: int | None) -> Trainer:
        training = Trainer.build(settings, on_disk, truth=test, resident_bytes=resident_bytes)
        assert training.inputs.streamed == (resident_bytes == 0)
        return training

    resident, stopped, resumed = build(None), build(0), build(0)
    events = list(resident)
    for _ in itertools.islice(stopped, len(events) // 2):
        pass
    resumed.restore(stopped.state())
    list(resumed)

    assert same(resident.state().tensors, resumed.state().tensors) == []
    assert timeless(resumed) == timeless(resident)


@every_method
def test_state_after_an_epoch_resumes_too(method: str, spec: Specs, labeled: LabeledImages) -> None:
    settings = spec(method=method, epochs=3)
    whole = Trainer.build(settings, labeled)
    states = [whole.state() for event in whole if isinstance(event, EpochReport)]

    for state in [*states[:2], Trainer.build(settings, labeled).state()]:
        resumed = Trainer.build(settings, labeled)
        resumed.restore(state)
        list(resumed)
        assert same(states[-1].tensors, resumed.state().tensors) == []


@every_method
def test_a_prediction_does_not_depend_on_its_companions(method: str, spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method=method, epochs=1), labeled)
    list(training)
    images = training.score(lambda positions: positions)[:9]
    training.method.eval()
    with torch.no_grad():
        together = training.method.heads(images)
        backwards = training.method.heads(images.flip(0))
        alone = training.method.heads(images[4:5])

    for name, logits in together.items():
        torch.testing.assert_close(backwards[name].flip(0), logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone[name], logits[4:5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(training.method.logits(images), together["answer"])


@every_method
def test_a_prediction_does_not_depend_on_other_threads(method: str, spec: Specs, labeled: LabeledImages) -> None:
    """An inference process predicts several batches side by side."""
    trained = Trainer.build(spec(method=method), labeled).method.eval()
    batches = [torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) for seed in range(24)]

    def predict(images: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return trained.predict(images)[0]

    alone = list(map(predict, batches))
    with ThreadPoolExecutor(4) as threads:
        beside = list(threads.map(predict, batches))

    for ours, expected in zip(beside, alone, strict=True):
        assert all(torch.equal(ours[head], logits) for head, logits in expected.items())


@with_steps
def test_the_order_within_a_batch_does_not_matter(method: str, spec: Specs, labeled: LabeledImages) -> None:
    """In no phase and in no pass; neither of images with a given label nor of those without."""
    settings = spec(
        method=method, epochs=8, batch_size=64, noise={"kind": "symmetric", "rate": 0.4}, validation_fraction=0.0
    )
    for changed in variants(settings, labeled):
        training = Trainer.build(changed, labeled)
        begun, unlabelled = Counter[str](), False
        for event in training:
            if isinstance(event, Step) and event.step == 0:  # the phase is entered, the epoch has begun
                phase = next(phase for phase in training.phases if phase.name == event.phase)
                begun[event.phase] += 1
                for batch in batches_of_epoch(training, phase):
                    there, back = (
                        outcome(training.method, phase, one_batch) for one_batch in (batch, backwards(batch))
                    )
                    assert there[0] == pytest.approx(back[0], rel=1e-4), event
                    for one, other in zip(there[1], back[1], strict=True):
                        torch.testing.assert_close(one, other.flip(0), rtol=1e-3, atol=1e-3)
                    unlabelled |= batch.unlabelled is not None
                if begun[training.phases[-1].name] == 2:
                    break

        assert set(begun) == {phase.name for phase in training.phases if phase.epochs}
        assert unlabelled == (method in WITHOUT_LABELS)


def variants(settings: TrainingSpec, labeled: LabeledImages) -> list[TrainingSpec]:
    """The defaults; and for every other sequence of phases, the first of the method's presets that has it.

    Presets for a frozen backbone are left out: `tests/ml/features` trains them on one.
    """
    results: dict[tuple[str, ...], TrainingSpec] = {}
    about = methods.load(settings.method).ABOUT
    frozen = about.get("frozen_backbone", {}).items()
    presets = [params for params in about["presets"].values() if not any(param in frozen for param in params.items())]
    for params in ({}, *presets):
        changed = settings.model_copy(update={"params": params})
        results.setdefault(tuple(phase.name for phase in Trainer.build(changed, labeled).phases), changed)
    return list(results.values())


def batches_of_epoch(training: Trainer, phase: Phase) -> list[Batch]:
    """A batch of every pass of the running epoch."""
    every = [Pass(torch.arange(len(training.batches)))]
    results = []
    for number, one_pass in enumerate(every if phase.passes is None else phase.passes()):
        pools = [
            pool_union.pool_positions(pool).unique()
            for pool in (one_pass.pool, one_pass.unlabelled)
            if pool is not None
        ]
        positions = tuple(pool[:16] for pool in pools if len(pool))
        progress = (training.epoch + 0.5) / training.epochs
        results.append(training.batches.build(phase, number, positions, epoch=training.epoch, progress=progress))
    return results


def backwards(batch: Batch) -> Batch:
    beside = batch.unlabelled
    return replace(
        batch,
        views=tuple(view.flip(0) for view in batch.views),
        labels=batch.labels.flip(0),
        index=batch.index.flip(0),
        unlabelled=beside
        and replace(beside, views=tuple(view.flip(0) for view in beside.views), index=beside.index.flip(0)),
    )


def outcome(method: Method, phase: Phase, batch: Batch) -> tuple[float, list[Tensor]]:
    """The loss and all observed logits, from equal draws, after which the method is what it was."""
    before = {name: value.clone() for name, value in method.state_dict().items()}
    draws, recorded = torch.Generator().manual_seed(0), list[Tensor]()
    unlabelled = batch.unlabelled and replace(batch.unlabelled, record_logits=recorded.append)
    seen = replace(batch, record_logits=recorded.append, unlabelled=unlabelled, generator=lambda _: draws)
    method.train(not any(isinstance(module, torch.nn.Dropout) for module in method.modules()))  # which sees places
    torch.manual_seed(0)
    loss = float(phase.loss(seen).detach())
    method.load_state_dict(before)
    return loss, recorded


@published
def test_learns_a_tiny_clean_set(method: str, spec: Specs, truth: Truth) -> None:
    training = Trainer.build(spec(method=method, epochs=5, batch_size=16), clean(192), truth=truth)

    assert reports(training)[-1].test["answer"].accuracy > 0.9


@published
def test_beats_chance_at_forty_percent_noise(method: str, spec: Specs, truth: Truth) -> None:
    noisy = spec(method=method, epochs=5, batch_size=16, noise={"kind": "symmetric", "rate": 0.4})
    training = Trainer.build(noisy, clean(192), truth=truth)

    assert reports(training)[-1].test["answer"].accuracy > 0.5


@every_method
def test_every_label_is_ranked(method: str, spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method=method, epochs=2), labeled)
    list(training)
    issues = training.label_issues()

    assert issues is not None
    assert issues.label_score.shape == issues.is_label_issue.shape == issues.predicted_label.shape == (97,)
    assert ((issues.label_score >= 0) & (issues.label_score <= 1)).all()
    assert training.margins.sums.weights.min() > 0


def clean(count: int) -> LabeledImages:
    images, labels = halves(count, seed=2)
    return LabeledImages(images, labels, tuple("abcd"))


def timeless(training: Trainer) -> list[dict[str, object]]:
    """Reports without the time they took."""
    return [report.to_json() | {"seconds": 0, "images_per_second": 0} for report in training.history]


FORMER_NAMES = {  # of tensors in models that were published before the names changed, and what they are now
    "dmi": {"kept.best": "best_weights.best"},
    "cores": {"sieve.kept": "selection.selected", "sieve.prior": "selection.prior"},
    "joint_optim": {"answers.values": "predictions.values"},
    "denll": {
        "core.bank.classes": "deconfounder.class_background.averages",
        "core.unit.darkest": "deconfounder.unit_range.darkest",
        "core.localization.last.bias": "deconfounder.localization.last.bias",
        "host1.kept.best": "base1.best_weights.best",
        "gates.own.weight": "gates.linear.weight",
        "brake.factor": "damping.factor",
    },
}


@pytest.mark.parametrize("method", FORMER_NAMES)
def test_a_model_with_former_names_is_read(method: str, spec: Specs, labeled: LabeledImages) -> None:
    params = {"host": "dmi"} if method == "denll" else {}
    model = Trainer.build(spec(method=method, params=params), labeled).method
    expected = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    names = {current: former for former, current in FORMER_NAMES[method].items()}
    assert names.keys() <= expected.keys()

    model.load_state_dict({names.get(name, name): tensor for name, tensor in expected.items()})
    assert same(expected, dict(model.state_dict())) == []
