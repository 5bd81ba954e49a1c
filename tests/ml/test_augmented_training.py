"""Training with every augmentation for photographs: repeatable, resumable, recordable; MixUp for any method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ml import errors, methods
from ml.data.dataset import LabeledImages
from ml.method import Batch, Mixture
from ml.training.spec import TrainingSpec
from ml.training.trainer import Step, Trainer
from tests.ml.conftest import same
from tests.ml.recorder import ReplayRecorder
from tests.ml.test_step_graphs import NonWaitingStep

Specs = Callable[..., TrainingSpec]
EVERYTHING: dict[str, Any] = {
    "augmentation": "resized_crop_flip", "crop_scale": 0.3, "randaugment": 9, "color_jitter": 0.4, "mixup": 0.4,
    "layer_decay": 0.8, "epochs": 2, "batch_size": 24,
}  # fmt: skip
MIXING = [name for name in methods.names() if methods.mixes(name, {})]
WITHOUT_STEPS = {"probe", "forward_probe"}
OTHERS = [name for name in methods.names() if name not in {*MIXING, *WITHOUT_STEPS}]


def test_a_training_repeats_and_resumes_exactly(spec: Specs, labeled: LabeledImages) -> None:
    settings = spec(**EVERYTHING)
    whole = Trainer.build(settings, labeled)
    states = [whole.state() for event in whole if isinstance(event, Step)]
    again = Trainer.build(settings, labeled)
    list(again)
    assert same(whole.state().tensors, again.state().tensors) == []

    for state in (states[1], states[5]):
        resumed = Trainer.build(settings, labeled)
        resumed.restore(state)
        list(resumed)
        assert same(whole.state().tensors, resumed.state().tensors) == []


@pytest.mark.parametrize(
    "change",
    [{"augmentation": "resized_crop_flip"}, {"randaugment": 9}, {"color_jitter": 0.4}, {"mixup": 0.4},
     {"layer_decay": 0.5}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_every_setting_changes_the_training(change: dict[str, Any], spec: Specs, labeled: LabeledImages) -> None:
    """From the first epoch on, and the digest by which checkpoints are known."""
    plain, changed = spec(epochs=1), spec(epochs=1, **change)
    trainings = [Trainer.build(settings, labeled) for settings in (plain, changed)]
    for training in trainings:
        list(training)

    assert plain.digest() != changed.digest()
    assert trainings[0].history[0].train_loss != trainings[1].history[0].train_loss


def test_replayed_steps_equal_eager_steps(spec: Specs, labeled: LabeledImages) -> None:
    """Crops and RandAugment have other forms on a CPU, which reads what was drawn; see their own tests."""
    settings = spec(**EVERYTHING | {"augmentation": "crop_flip", "randaugment": 0})
    eager, recorded = (Trainer.build(settings, labeled) for _ in range(2))
    recorded.record_steps(ReplayRecorder())
    list(eager), list(recorded)

    assert same(eager.state().tensors, recorded.state().tensors) == []


def test_no_step_waits_for_the_device(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(**EVERYTHING), labeled)
    training.step_runner = runner = NonWaitingStep()
    list(training)

    assert runner.steps == training.step > 0


def test_a_scored_view_is_augmented_but_never_mixed(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(mixup=0.4, augmentation="none", validation_fraction=0.0), labeled)

    assert torch.equal(training.score(lambda images: images, views=1), training.score(lambda images: images))


# --- MixUp ---


def test_images_are_mixed_with_their_partners(spec: Specs, labeled: LabeledImages) -> None:
    """Every view alike, and mostly its own image."""
    training = Trainer.build(spec(mixup=1.0, augmentation="none"), labeled)
    plain = Trainer.build(spec(augmentation="none"), labeled)
    phase = replace(training.phases[0], views=("weak", "weak"))
    rows = (torch.arange(20),)
    shares = []
    for _ in range(30):
        batch = training.batches.build(phase, 0, rows, epoch=0, progress=0.0)
        images = plain.batches.build(phase, 0, rows, epoch=0, progress=0.0).images
        mixture = batch.mixture
        assert mixture is not None
        mixed = mixture.share * images + (1 - mixture.share) * images[mixture.partner]
        for view in batch.views:
            torch.testing.assert_close(view, mixed)
        assert sorted(mixture.partner.tolist()) == list(range(20))
        shares.append(float(mixture.share))

    assert 0.5 <= min(shares) < 0.6
    assert 0.9 < max(shares) <= 1.0


def test_a_label_loss_is_weighted_by_the_shares() -> None:
    labels, index = torch.tensor([0, 1, 2]), torch.tensor([7, 8, 9])
    partner = torch.tensor([2, 0, 1])
    batch = Batch((torch.zeros(3, 1),), labels, index, lambda _: None)
    mixed = replace(batch, mixture=Mixture(torch.tensor(0.75), partner))
    remembered: dict[int, int] = {}

    def loss(labels: Tensor, index: Tensor) -> Tensor:
        remembered.update(zip(index.tolist(), labels.tolist(), strict=True))
        return (labels * 10 + index).float()

    assert torch.equal(batch.label_loss(loss), labels * 10.0 + index)
    assert torch.equal(mixed.label_loss(loss), 0.75 * (labels * 10.0 + index) + 0.25 * (labels * 10.0 + index)[partner])
    assert remembered == {7: 0, 8: 1, 9: 2}


@pytest.mark.parametrize("method", OTHERS)
def test_every_loss_takes_the_labels_of_both_images(method: str, spec: Specs, labeled: LabeledImages) -> None:
    """In every phase: with the partner's share taken as 0 the same images have another loss."""
    training = Trainer.build(spec(method=method, mixup=1.0, epochs=8, batch_size=24), labeled)
    differing: dict[str, set[bool]] = {}
    for phase in training.phases:

        def both(batch: Batch, loss: Callable[[Batch], Tensor] = phase.loss, name: str = phase.name) -> Tensor:
            assert batch.mixture is not None
            own = replace(batch.mixture, share=torch.ones_like(batch.mixture.share))
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                alone = loss(replace(batch, mixture=own).without_recording())
            mixed = loss(batch)
            differing.setdefault(name, set()).add(not torch.equal(alone, mixed.detach()))
            return mixed

        object.__setattr__(phase, "loss", both)
    list(training)

    assert differing.keys() == {phase.name for phase in training.phases if phase.epochs}
    assert all(True in seen for seen in differing.values()), differing


@pytest.mark.parametrize("method", MIXING)
def test_a_method_that_mixes_is_refused(method: str, spec: Specs, labeled: LabeledImages) -> None:
    for settings in ({"method": method}, {"method": "denll", "params": {"host": method}}):
        with pytest.raises(errors.ContradictorySpec, match="mixes images already"):
            Trainer.build(spec(mixup=0.2, **settings), labeled)
        Trainer.build(spec(**settings), labeled)
