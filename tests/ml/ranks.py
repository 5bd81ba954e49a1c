"""Scenarios for several processes, each run by every rank: `python -m tests.ml.ranks FOLDER`.

A scenario is a function here; what it returns lies in `FOLDER/NAME-RANK.safetensors` afterwards.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ml import methods, networks
from ml.data.dataset import LabeledImages, Truth
from ml.distributed import process_group, sharding
from ml.distributed.launch import RankEnded, RankInfo, launch
from ml.training import checkpoint
from ml.training.spec import TrainingSpec
from ml.training.trainer import EpochReport, Trainer
from tests.ml.conftest import SIDE, halves

Tensors = dict[str, Tensor]
CHANGES: dict[str, dict[str, object]] = {
    "ce": {},
    "ce pair": {"params": {"networks": 2, "agreement": "both"}, "batch_size": 16},
    "denll": {"method": "denll"},
    "denll confounded": {"method": "denll", "params": "confounded"},
    "denll concat": {"method": "denll", "params": {"fusion": "concat", "gates": "joint"}},
    "dividemix": {"method": "dividemix"},
    "uneven": {"batch_size": 17},  # 97 images, 10 held out: five steps of 17 and one of 2
    "fp16": {"precision": "fp16", "params": {"networks": 2}},
}
ALONE = {"uneven", "fp16"}  # have scenarios of their own
STOP_AT = 5  # events: in the middle of the second epoch


def data() -> tuple[LabeledImages, Truth]:
    images, labels = halves(97)
    test, test_labels = halves(31, seed=1)
    return LabeledImages(images, labels, tuple("abcd")), Truth(None, test, test_labels)


def build(name: str, group: process_group.ProcessGroup | None) -> Trainer:
    changes = dict(CHANGES[name])
    if isinstance(preset := changes.get("params"), str):
        changes["params"] = methods.load(str(changes["method"])).ABOUT["presets"][preset]
    settings = {"network": "small", "image_size": SIDE, "epochs": 2, "batch_size": 32, "learning_rate": 0.01}
    spec = TrainingSpec.model_validate(
        {"method": "ce", "augmentation": "flip", "precision": "f32"} | settings | changes
    )
    images, truth = data()
    return Trainer.build(spec, images, truth=truth, device="cpu", threads=1, group=group)


def outcome(training: Trainer) -> Tensors:
    """Everything a training holds, and what it reported."""
    reported = [[r.train_loss, *(s.loss for part in (r.noisy_validation, r.test) for s in part.values())]
            for r in training.history]  # fmt: skip
    return training.state().tensors | {"reported": torch.tensor(reported, dtype=torch.float64)}


def trained(name: str, group: process_group.ProcessGroup | None = None) -> Tensors:
    training = build(name, group)
    list(training)
    return outcome(training)


def trainings(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """Most kinds of training to their end."""
    return {
        f"{name}: {key}": tensor
        for name in sorted(set(CHANGES) - ALONE)
        for key, tensor in trained(name, group).items()
    }


def uneven(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """Batches that cannot be shared evenly, with ranks that get nothing of the last."""
    return trained("uneven", group)


def fp16_training(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """A training whose first steps overflow."""
    training = build("fp16", group)
    training.begin_epoch()
    training.scaler.restore(training.scaler.tensors() | {"scale": torch.tensor(2.0**30)})
    list(training)
    return outcome(training)


def resumed(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """A training stopped, written by the first rank, and taken up by fresh trainings."""
    stopped = build("denll", group)
    for number, event in enumerate(stopped):
        if number == STOP_AT:
            assert not isinstance(event, EpochReport)
            break
    path = checkpoint.write(folder / "checkpoints", stopped.state()) if group.rank == 0 else None
    path = Path(group.broadcast_object(str(path)))
    again = build("denll", group)
    again.restore(checkpoint.read(path))
    list(again)
    return outcome(again)


class Stochastic(nn.Module):
    """Dropout over rows, and what it drew."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.dropout(images, 0.5, self.training)


def dropout_draws(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """The draws of a network with dropout, and the state of the generator afterwards."""
    network = networks.build("small", 4, 16)
    network.body = nn.Sequential(Stochastic(), nn.AdaptiveAvgPool2d(4))
    network.last_stage = nn.Flatten()
    sharding.shard_network(network, group)
    torch.manual_seed(3)
    first, second = (network.features(torch.ones(8, 3, 16, 16)) for _ in range(2))
    return {"first": first, "second": second, "left": torch.get_rng_state()}


def gradients(group: process_group.ProcessGroup | None, folder: Path) -> Tensors:
    """In f64: of images, of weights with a penalty on them, asked for by name; two passes of a copy, partly frozen."""
    import copy

    torch.manual_seed(0)
    network = networks.build("small", 4, 16).double()
    if group is not None:
        sharding.shard_network(network, group)
    network = copy.deepcopy(network)
    next(network.parameters()).requires_grad_(False)
    images = halves(11)[0].permute(0, 3, 1, 2).double().div(255).requires_grad_()
    weights = [p for p in network.parameters() if p.requires_grad]
    loss = network(images).square().mean() + network(images.flip(3)).square().mean()
    loss = loss + 0.1 * sum((p.square().sum() for p in weights), start=torch.zeros((), dtype=torch.float64))
    gradients = torch.autograd.grad(loss, [images, *weights], retain_graph=True)
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients[1:], weights, strict=True) if p.grad is not None)
    names = ["images", *(name for name, p in network.named_parameters() if p.requires_grad)]
    return dict(zip(names, gradients, strict=True)) | {
        "kinds": torch.tensor([type(p) is nn.Parameter for p in weights])
    }


def bf16_gradients(group: process_group.ProcessGroup | None, folder: Path, *, enabled: bool = True) -> Tensors:
    """Gradients of the small network in bf16."""
    torch.manual_seed(0)
    network = networks.build("small", 4, 16)
    if group is not None:
        sharding.shard_network(network, group)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        logits = network(halves(13)[0].permute(0, 3, 1, 2).float().div(255))
        logits.float().square().mean().backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def diverged_weights(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """The second rank's weights are changed, so that they differ from the first's."""
    training = build("ce", group)
    if group.rank == 1:
        with torch.no_grad():
            training.method.get_parameter("networks.0.classifier.weight").add_(0.1)
    try:
        list(training)
    except Exception as error:  # noqa: BLE001 - the test checks which one it is
        return {type(error).__name__: torch.zeros(1)}
    return {}


def different_pools(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """The second rank scores images differently, as the rounding of another GPU may, so its own pools would differ."""
    training = build("dividemix", group)
    score = training.score
    if group.rank == 1:
        training.score = lambda function, views=0: score(function, views=views).flip(0)  # type: ignore[method-assign,misc]
    list(training)
    return outcome(training)


def memory_estimates(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """The free memory that each rank counts with, and the smaller of two numbers."""
    training = build("ce", group)
    next(iter(training))
    assert training.memory is not None
    return {"free": torch.tensor(training.memory.free), "minimum": torch.tensor(group.minimum(10 - group.rank))}


def lost_rank(group: process_group.ProcessGroup, folder: Path) -> Tensors:
    """The second rank ends in mid-training."""
    for event in build("ce", group):
        if group.rank == 1 and isinstance(event, EpochReport):
            os._exit(3)
    return {}


SCENARIOS: tuple[Callable[[process_group.ProcessGroup, Path], Tensors], ...]
SCENARIOS = (
    trainings,
    fp16_training,
    resumed,
    dropout_draws,
    gradients,
    bf16_gradients,
    diverged_weights,
    different_pools,
    memory_estimates,
)


def run_scenarios(
    rank_info: RankInfo, scenarios: Sequence[Callable[[process_group.ProcessGroup, Path], Tensors]], folder: Path
) -> None:
    torch.set_num_threads(1)
    group = process_group.ProcessGroup.join(
        rank_info.rendezvous, rank_info.rank, rank_info.size, torch.device("cpu"), timeout_s=30.0
    )
    for scenario in scenarios:
        result = {key: tensor.detach().contiguous() for key, tensor in scenario(group, folder).items()}
        save_file(result, folder / f"{scenario.__name__}-{group.rank}.safetensors")
    group.leave()


if __name__ == "__main__":
    importlib.import_module("torch._dynamo")  # optimizers ask for it: once here instead of once in each fork
    place = Path(sys.argv[1])
    launch(run_scenarios, 2, SCENARIOS, place)
    launch(run_scenarios, 5, (uneven,), place)
    try:
        launch(run_scenarios, 2, (lost_rank,), place)
    except RankEnded as ended:
        (place / "ended").write_text(f"{ended.rank} {ended.status}")
    os._exit(0)  # unloading torch takes a second
