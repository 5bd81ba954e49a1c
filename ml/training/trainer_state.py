"""Packs the state of a training into tensors and JSON, and restores it bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml.method import ENSEMBLE
from ml.training import checkpoint
from ml.training.events import EpochReport
from ml.training.sampler import EpochSampler

if TYPE_CHECKING:
    from ml.training.trainer import Trainer


def pack(trainer: Trainer, *, on_device: bool) -> checkpoint.State:
    """A copy of everything that the rest of the training depends on; later steps do not change it.

    Args:
        trainer: The training.
        on_device: Leave tensors on their device: on a GPU, nothing is waited for.
    """
    margin_tensors, margin_facts = trainer.margins.state()
    optimizer_tensors, optimizer_facts = checkpoint.pack_optimizers(trainer.optimizers.members)
    groups = {
        "method/": trainer.method.state_dict(),
        "margins/": margin_tensors,
        "random/": trainer.random.state(),
        "sampler/": {} if trainer.sampler is None else trainer.sampler.state(),
        "optimizer/": optimizer_tensors,
        "scaler/": trainer.scaler.tensors(),
    }
    tensors = {prefix + name: tensor for prefix, group in groups.items() for name, tensor in group.items()}
    tensors["loss_sum"] = trainer.loss_sum
    # between epochs, the last accuracy decides which checkpoint is the best
    last = trainer.history[-1] if trainer.sampler is None and trainer.history else None
    validation = last.noisy_validation.get(ENSEMBLE) if last else None
    facts: dict[str, Any] = {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "position": trainer.position,
        "phase_number": trainer.phase_number,
        "seconds": trainer.seconds,
        "networks_built": trainer.networks.built,
        "frozen": [name for name, p in trainer.method.named_parameters() if not p.requires_grad],
        "optimizers": optimizer_facts,
        "margins": margin_facts,
        "history": [report.to_json() for report in trainer.history],
        "score": validation.accuracy if validation else None,
        "config_hash": trainer.config_hash,
        "data_hash": trainer.data_hash,
    }
    copies = {name: checkpoint.snapshot(tensor, on_device=on_device) for name, tensor in tensors.items()}
    return checkpoint.State(copies, facts)


def unpack(trainer: Trainer, state: checkpoint.State) -> bool:
    """Restore a trainer to a state of the same training.

    Returns:
        Whether it goes on exactly: not where its random states are of another kind of device (F29).

    Raises:
        CheckpointInvalid: The state is of another training.
    """
    facts = state.facts
    checkpoint.check_owner(facts, config_hash=trainer.config_hash, data_hash=trainer.data_hash)

    # The method, its optimizers and random states
    trainer.method.load_state_dict(state.under("method/"))
    for name, parameter in trainer.method.named_parameters():
        parameter.requires_grad_(name not in facts["frozen"])
    trainer.networks.built = facts["networks_built"]
    trainer.phase_number = facts["phase_number"]
    trainer.optimizers = trainer.schedule.build_optimizers(trainer.phase_number)
    checkpoint.unpack_optimizers(trainer.optimizers.members, state.under("optimizer/"), facts["optimizers"])
    trainer.scaler.restore(state.under("scaler/"))
    is_exact = trainer.random.restore(state.under("random/"), state.step)

    # What was measured
    trainer.margins.restore(state.under("margins/"), facts["margins"])
    # Older checkpoints count epochs from 0: a report's number is its place.
    reports = enumerate(facts["history"], start=1)
    trainer.history = [EpochReport.from_json({**report, "epoch": number}) for number, report in reports]

    # The place in the loop
    orders = state.under("sampler/")
    batch_size = trainer.phases[trainer.phase_number].images_per_step(trainer.spec.batch_size)
    trainer.sampler = EpochSampler.from_state(orders, batch_size, trainer.device) if orders else None
    trainer.loss_sum = state.tensors["loss_sum"].to(trainer.device, copy=True)
    trainer.step, trainer.epoch, trainer.position = facts["step"], facts["epoch"], facts["position"]
    trainer.seconds = facts["seconds"]
    trainer.step_runner.reset()
    return is_exact
