"""The whole vocabulary of a method: `Method`, `Phase`, `Batch`, `TrainContext`.

The loop (`ml.training.trainer`) owns time - order, devices, schedules, generators, events, state. The method owns the
step.
Nothing here knows a data set, a device or a service.

Shapes: `N` samples, `B` batch, `C` classes, images `(B, 3, H, W)` float, normalised per channel by the loader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

ENSEMBLE = "answer"  # the head that predicts when training is done, by its name in reports, archives and the API

View = Literal["weak", "strong"]  # weak: as the spec augments; strong: AutoAugment and Cutout on top of it


class Network(nn.Module):
    """What a method trains: an image classifier whose three parts have names, so that a method may renew some of them.

    `body`, `last_stage` and `classifier` partition the parameters (PES re-initialises the later ones).
    """

    feature_count: int  # D
    image_size: int  # H = W
    body: nn.Module
    last_stage: nn.Module
    classifier: nn.Module

    @property
    def class_count(self) -> int:
        """C."""
        raise TypeError(f"{type(self).__name__} does not say its classes")

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> penultimate representation (B, D)."""
        raise TypeError(f"{type(self).__name__} defines no features")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        raise TypeError(f"{type(self).__name__} defines no logits")


def no_generator(concern: str) -> torch.Generator:
    """What a batch made by hand answers: only a training has generators."""
    raise LookupError(f"this batch comes from no training, so it has no generator for {concern!r}")


@dataclass(frozen=True)
class Unlabelled:
    """Images of a step whose given labels the method does not see."""

    views: tuple[Tensor, ...]  # each (B', 3, H, W)
    index: Tensor  # int64 (B',), as Batch.index
    record_logits: Callable[[Tensor], None]  # as Batch.observe


@dataclass(frozen=True)
class Batch:
    """What one step sees. Labels are the given ones; there is no field for clean labels (law 7)."""

    views: tuple[Tensor, ...]  # each (B, 3, H, W)
    labels: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,): positions among the labels the method was built with
    record_logits: Callable[
        [Tensor], None
    ]  # takes plain logits (B, C), at most once a step; the loop ranks labels by them
    epoch: int = 0  # counted over all phases
    progress: float = 0.0  # of the whole training, in [0, 1); within an epoch every turn counts from its start
    pass_index: int = 0  # number of the phase's turn
    unlabelled: Unlabelled | None = None  # where the turn has such images
    generator: Callable[[str], torch.Generator] = no_generator  # as Lab.generator: shared by all who name one concern

    @property
    def images(self) -> Tensor:
        return self.views[0]

    def without_recording(self) -> Batch:
        """The same, and nobody hears what is observed of it."""
        beside = self.unlabelled and replace(self.unlabelled, record_logits=_unheard)
        return replace(self, record_logits=_unheard, unlabelled=beside)


def _unheard(_: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Optimizers:
    """Who owns which parameters, and how their learning rates move."""

    members: tuple[torch.optim.Optimizer, ...]
    factor: Callable[[float], float]  # progress of the phase in [0, 1) -> factor on each base learning rate
    constant_rate: tuple[torch.optim.Optimizer, ...] = ()  # those of the members whose rates never move

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The members' groups of parameters, each with its learning rate: torch's own, to be changed in place."""
        return [group for member in self.members for group in member.param_groups]


class TrainContext(Protocol):
    """What a method may ask of the loop when a phase or an epoch begins."""

    @property
    def epoch(self) -> int:
        """Counted over all phases, from 0."""
        ...

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        ...

    def generator(self, concern: str) -> torch.Generator:
        """The generator of one concern, on the training's device, from the spec's seed, checkpointed by the loop."""
        ...

    def noisy_accuracies(self) -> Sequence[float]:
        """The answer's, of every epoch so far, on held-out images by given labels; empty where none are held out."""
        ...

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        """`function` of every training image in index order, without gradients: (N, ...).

        `views = 0` shows the plain image; `views = k` averages over k augmented ones.
        """
        ...


@dataclass(frozen=True)
class Pass:
    """One pass of an epoch over a pool. A phase that trains its networks one after the other gives each its turn.

    Pools are masks (M,) or int64 positions, of which a repeated one is shown as often.
    """

    pool: Tensor  # of these every step shows the next, each once
    unlabelled: Tensor | None = None  # beside them, round after round; None or empty shows none
    share: float = 0.5  # of a batch that is unlabelled, if there are enough


def no_preparation(_: TrainContext) -> None:
    """A phase that prepares nothing."""


def no_step_hook(_: Batch) -> None:
    """A step like any other."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own loss, data and optimisers.

    `enter` and `begin_epoch` may change parameters, buffers and `requires_grad`, nothing else: these are what a
    checkpoint holds, and neither is called again when a training resumes inside the epoch.
    """

    epochs: int
    loss: Callable[[Batch], Tensor]  # scalar with a graph
    optimizers: Callable[[], Optimizers] | None  # built on entering; None keeps those of the phase before
    before_step: Callable[[Batch], None] = no_step_hook  # after the gradients, before they are used: mask some
    after_step: Callable[[Batch], None] = no_step_hook  # average weights
    enter: Callable[[TrainContext], None] = no_preparation  # once: re-initialise parts, estimate a transition matrix
    begin_epoch: Callable[[TrainContext], None] = (
        no_preparation  # score the set, split it, refine labels, move a schedule
    )
    passes: Callable[[], Sequence[Pass]] | None = None  # what this epoch draws from; None is one turn of all samples
    views: tuple[View, ...] = ("weak",)  # what is shown of every image
    clip: float | None = None  # limit of the joint gradient norm; None does not clip
    name: str = "train"  # shown in reports


class MethodParams(BaseModel):
    """A method's parameters: frozen, finite, and no field that the method does not know. Base of every `Params`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class Method(nn.Module):
    """A strategy against label noise.

    What a method learns is a Parameter and what it remembers is a buffer, so `state_dict` is its whole state.
    """

    # former beginnings of names in `state_dict` and what they became, so that published models stay readable
    former_state_names: ClassVar[Mapping[str, str]] = {}

    def __init__(self, params: BaseModel, labels: Tensor, network: Callable[[], Network]) -> None:
        """Build the method's networks and buffers.

        Args:
            params: the method's own `Params`.
            labels: given labels int64 (N,) of the images that are trained on.
            network: returns another, freshly initialised network at every call.
        """
        super().__init__()
        self.register_load_state_dict_pre_hook(_rename_former_state)  # type: ignore[no-untyped-call]

    def phases(self, training: TrainHyperparameters) -> Sequence[Phase]:
        """From settings alone, so that (phase, epoch, step) is enough to resume."""
        raise TypeError(f"{type(self).__name__} defines no phases")

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): how it predicts when done."""
        raise TypeError(f"{type(self).__name__} defines no prediction")

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Every prediction worth reporting, by name: {ENSEMBLE: `logits` (B, C), "g1": ...}."""
        return {ENSEMBLE: self.logits(images)}

    def locate(self, images: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> centre x, centre y, sigma in network pixels (B, 3); None without a localization module."""
        return None


def _rename_former_state(module: Method, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before `state` is loaded: names that a former version wrote become today's, in place."""
    for former, current in module.former_state_names.items():
        for name in [name for name in state if name.startswith(prefix + former)]:
            state[prefix + current + name.removeprefix(prefix + former)] = state.pop(name)


@dataclass(frozen=True)
class TrainHyperparameters:
    """What of the training spec a method may know when it lays out its phases."""

    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    factor: Callable[[float], float]  # the spec's schedule over the whole training: progress in [0, 1) -> factor
    batch_size: int = 128

    def sgd(
        self, parameters: Iterable[nn.Parameter], *, scale: float = 1.0, weight_decay: float | None = None
    ) -> torch.optim.Optimizer:
        """Plain SGD at `scale` times the spec's learning rate; the spec's weight decay unless another is given."""
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.learning_rate * scale,
            momentum=self.momentum,
            weight_decay=self.weight_decay if weight_decay is None else weight_decay,
            fused=True,  # one pass over the weights; and no other kind reads its rate from a tensor without waiting
        )
        optimizer.register_step_pre_hook(_begin_momentum)
        return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Of parameters that had no gradient before, as newly unfrozen ones: the fused kind takes all to begin together."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def take_gradient_step(
    loss: Tensor,
    optimizers: Optimizers,
    clip: float | None = None,
    before: Callable[[], None] = lambda: None,
) -> Tensor:
    """One gradient step of every member; the loss comes back detached, nothing waits.

    `before` may change the gradients; after it `clip` limits their joint norm.
    """
    for optimizer in optimizers.members:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    before()
    if clip is not None:
        parameters = [p for group in optimizers.groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers.members:
        optimizer.step()
    return loss.detach()
