"""fp16 with loss scaling: overflows skip a step and are counted, checkpoints hold the scale, and a resume is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ml import errors
from ml.data.dataset import LabeledImages
from ml.method import Batch, Optimizers, take_gradient_step
from ml.training import checkpoint, loss_scaling
from ml.training.loss_scaling import LossScaler
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Step, Trainer
from tests.ml.conftest import reports, same
from tests.ml.recorder import ReplayRecorder

Specs = Callable[..., TrainingSpec]
CPU = torch.device("cpu")
TOO_LARGE = 2.0**36  # a scale at which gradients of the layers in fp16 overflow


def scale_loss(training: Trainer, factor: float) -> None:
    """Multiply the loss of the first phase."""
    plain = training.phases[0].loss

    def scaled(batch: Batch) -> torch.Tensor:
        loss: torch.Tensor = plain(batch) * factor
        return loss

    object.__setattr__(training.phases[0], "loss", scaled)


def start_at(training: Trainer, scale: float) -> None:
    training.scaler.restore(training.scaler.tensors() | {"scale": torch.tensor(scale)})


@pytest.mark.parametrize("method", ["ce", "denll", "sop", "dividemix"])
def test_trains_in_fp16(method: str, spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(method=method, precision="fp16", epochs=4), labeled)
    reported = reports(training)

    assert all(report.finite for report in reported)
    assert reported[-1].train_loss < reported[0].train_loss or method == "dividemix"  # whose phases have other losses
    assert {parameter.dtype for parameter in training.method.parameters()} == {torch.float32}
    assert float(training.scaler.tensors()["scale"]) > 1.0


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_other_precisions_have_no_scale(precision: str, spec: Specs, labeled: LabeledImages) -> None:
    """Nor has their checkpoint: it is that of earlier versions."""
    training = Trainer.build(spec(precision=precision, epochs=1), labeled)

    assert [report.skipped_steps for report in reports(training)] == [0]
    assert training.state().under("scaler/") == {}


def test_a_step_that_overflows_changes_no_weight_and_is_counted(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(precision="fp16", epochs=2, batch_size=8), labeled)
    training.begin_epoch()
    start_at(training, TOO_LARGE)
    before = [parameter.detach().clone() for parameter in training.method.parameters()]
    events = iter(training)
    next(events)

    assert all(map(torch.equal, before, training.method.parameters()))
    assert float(training.scaler.tensors()["scale"]) == TOO_LARGE / 2
    reported = [event for event in events if isinstance(event, EpochReport)]
    assert reported[0].skipped_steps > 0
    assert EpochReport.from_json(reported[0].to_json()).skipped_steps == reported[0].skipped_steps
    assert not all(map(torch.equal, before, training.method.parameters()))


def test_each_optimiser_decides_for_itself() -> None:
    """As GradScaler has it: of two networks, one that overflows holds up no other."""
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
    members = tuple(torch.optim.SGD([weight], lr=0.5, fused=True) for weight in weights)
    scaler = LossScaler(CPU, enabled=True)
    # the third has no gradient, like the network that another pass trains
    loss = weights[0].sum() + (weights[1] * torch.tensor([1e38, 1.0])).sum()
    take_gradient_step(loss, Optimizers(members, lambda _: 1.0), scaler=scaler)

    assert [weight.tolist() for weight in weights] == [[0.5, 0.5], [1.0, 1.0], [1.0, 1.0]]
    assert int(scaler.skipped) == 1


def test_momentum_begins_at_zero_where_the_first_step_overflows(spec: Specs, labeled: LabeledImages) -> None:
    """A fused optimiser makes it before it knows of the overflow, and does not fill it."""
    training = Trainer.build(spec(precision="fp16", epochs=1), labeled)
    training.begin_epoch()
    start_at(training, TOO_LARGE)
    next(iter(training))
    momenta = [entry["momentum_buffer"] for entry in training.optimizers.members[0].state.values()]

    assert momenta
    assert not any(bool(momentum.any()) for momentum in momenta)


@pytest.mark.parametrize("factor", [1e30, float("nan"), float("inf")])
def test_F24_what_no_scale_makes_finite_is_diverged(
    factor: float, spec: Specs, labeled: LabeledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that overflow at any scale, or a loss that is not finite: at no scale is that a matter of rounding."""
    monkeypatch.setattr(loss_scaling, "MIN_SCALE", 2.0**14)
    training = Trainer.build(spec(precision="fp16", epochs=3), labeled)
    scale_loss(training, factor)
    with pytest.raises(errors.TrainingDiverged):
        list(training)

    assert training.epoch == 0


def test_INV5_a_resume_has_the_scale(spec: Specs, labeled: LabeledImages, tmp_path: Path) -> None:
    """In mid-epoch, by way of a file, with skipped steps before and after."""
    settings = spec(precision="fp16", epochs=3, augmentation="crop_flip")
    whole = Trainer.build(settings, labeled)
    whole.begin_epoch()
    start_at(whole, 2.0**40)
    states = [whole.state() for event in whole if isinstance(event, Step)]
    assert sum(report.skipped_steps for report in whole.history) > 3
    for number in (1, 4, len(states) - 2):
        resumed = Trainer.build(settings, labeled)
        resumed.restore(checkpoint.read(checkpoint.write(tmp_path / str(number), states[number])))
        list(resumed)
        assert same(whole.state().tensors, resumed.state().tensors) == []
        assert [r.skipped_steps for r in whole.history] == [r.skipped_steps for r in resumed.history]


def test_a_checkpoint_without_a_scale_is_read(spec: Specs, labeled: LabeledImages) -> None:
    """Such as an earlier version wrote on a GPU without bf16, where it trained in f32."""
    training = Trainer.build(spec(precision="fp16", epochs=2), labeled)
    next(iter(training))
    state = training.state()
    earlier = replace(state, tensors={name: t for name, t in state.tensors.items() if not name.startswith("scaler/")})
    resumed = Trainer.build(spec(precision="fp16", epochs=2), labeled)

    assert resumed.restore(earlier)
    assert float(resumed.scaler.tensors()["scale"]) == 2.0**16
    assert len(reports(resumed)) == 2


def test_estimating_memory_moves_no_scale(spec: Specs, labeled: LabeledImages) -> None:
    training = Trainer.build(spec(precision="fp16"), labeled)
    training.begin_epoch()
    start_at(training, TOO_LARGE)
    before = {name: tensor.clone() for name, tensor in training.scaler.tensors().items()}
    training.check_memory()

    assert same(before, training.scaler.tensors()) == []


@pytest.mark.parametrize("scale", [2.0**16, 2.0**28])
def test_recorded_steps_scale_as_eager_ones(scale: float, spec: Specs, labeled: LabeledImages) -> None:
    """Also where some are skipped: a recording asks the device, not Python, whether to take a step."""
    settings: Any = spec(precision="fp16", epochs=4, batch_size=8)
    written, recorded = (Trainer.build(settings, labeled) for _ in range(2))
    recorded.record_steps(ReplayRecorder())
    for training in (written, recorded):
        training.begin_epoch()
        start_at(training, scale)
        list(training)

    assert recorded.step_runner.replayed > 20
    assert recorded.step_runner.notices == []
    assert same(written.state().tensors, recorded.state().tensors) == []
    assert [r.skipped_steps for r in written.history] == [r.skipped_steps for r in recorded.history]
