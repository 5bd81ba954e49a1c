"""The interface between a method and the training loop: `Method`, `Phase`, `Pass`, `Batch`, `TrainContext`.

The loop (`ml.training.trainer`) owns order, devices, learning rates, generators and state. The method owns its
networks, the loss and what happens in a step.

Shapes: `M` images trained on, `B` batch, `C` classes, `D` features, images (B, 3, H, W) float, normalised per channel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ml.step_values import RecordedEpoch

T = TypeVar("T")

ENSEMBLE = "answer"  # the head that predicts when training is done, by its name in reports, archives and the API

View = Literal["weak", "strong"]  # weak: as the spec augments; strong: with AutoAugment and Cutout


class Network(nn.Module):
    """An image classifier in three parts, so that a method can reinitialise the later ones (PES).

    Attributes:
        feature_count: D.
        image_size: H = W in pixels.
        body, last_stage, classifier: Applied in this order. Together they have all parameters, each once.
    """

    feature_count: int
    image_size: int
    body: nn.Module
    last_stage: nn.Module
    classifier: nn.Module

    @property
    def class_count(self) -> int:
        """C."""
        raise TypeError(f"{type(self).__name__} defines no number of classes")

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> penultimate representation (B, D)."""
        raise TypeError(f"{type(self).__name__} defines no features")

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        raise TypeError(f"{type(self).__name__} defines no logits")


def no_generator(concern: str) -> torch.Generator:
    """The `Batch.generator` of a batch that no training built: raises LookupError."""
    raise LookupError(f"this batch comes from no training, so it has no generator for {concern!r}")


@dataclass(frozen=True)
class Unlabelled:
    """The images of a step whose given labels the method does not see.

    Attributes:
        views: As `Batch.views`, each (B', 3, H, W).
        index: As `Batch.index`, int64 (B',).
        record_logits: As `Batch.record_logits`.
    """

    views: tuple[Tensor, ...]
    index: Tensor
    record_logits: Callable[[Tensor], None]


@dataclass(frozen=True)
class Mixture:
    """How the images of a batch were mixed in pairs (`TrainingSpec.mixup`).

    Attributes:
        share: Of a row's own image, a scalar in [0.5, 1].
        partner: The row that each row was mixed with, int64 (B,).
    """

    share: Tensor
    partner: Tensor


@dataclass(frozen=True)
class Batch:
    """What one step sees. Labels are the given ones; there is no field for clean labels (law 7).

    Attributes:
        views: One augmentation of the images for each of `Phase.views`, each (B, 3, H, W).
        labels: Given labels, int64 (B,).
        index: Positions of the images among the labels that the method was built with, int64 (B,).
        record_logits: Takes logits (B, C) of unmixed images, at most once a step. Labels are ranked by them.
        epoch: Over all phases, from 0. A loss that depends on it uses `of_epoch`, or its steps cannot be recorded.
        progress: Of the whole training, in [0, 1). Within an epoch every pass counts from the epoch's start. A step
            whose loss depends on it cannot be recorded.
        pass_index: Which of the phase's passes this step belongs to.
        unlabelled: The images without labels, if the pass has any.
        generator: As `TrainContext.generator`.
        mixture: How the images of all views were mixed; None where they are as they were drawn. Each row shows mostly
            its own image, so what a method remembers of an image follows `index` either way.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    record_logits: Callable[[Tensor], None]
    epoch: int = 0
    progress: float = 0.0
    pass_index: int = 0
    unlabelled: Unlabelled | None = None
    generator: Callable[[str], torch.Generator] = no_generator
    mixture: Mixture | None = None

    @property
    def images(self) -> Tensor:
        """The first view, (B, 3, H, W)."""
        return self.views[0]

    def of_epoch(self, function: Callable[[int], T]) -> T:
        """`function` of the epoch, from 0: a number, or what else a loss decides by it.

        Steps that were recorded on a GPU are repeated in all epochs in which it has the same value.
        """
        return self.epoch.derive(function) if isinstance(self.epoch, RecordedEpoch) else function(self.epoch)

    def label_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A loss by given labels; of mixed images by the labels of both, weighted by their shares.

        Args:
            loss: Takes given labels and the positions of their images, int64 (B,), one for each row of the batch, and
                returns a loss of any shape. What it remembers by position is overwritten for the images' own labels.
        """
        if self.mixture is None:
            return loss(self.labels, self.index)
        partner = self.mixture.partner
        of_partners = loss(self.labels[partner], self.index[partner])
        return torch.lerp(of_partners, loss(self.labels, self.index), self.mixture.share)

    def without_recording(self) -> Batch:
        """The same batch, whose `record_logits` does nothing."""
        unlabelled = self.unlabelled and replace(self.unlabelled, record_logits=_ignore_logits)
        return replace(self, record_logits=_ignore_logits, unlabelled=unlabelled)


def _ignore_logits(_: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Optimizers:
    """The optimisers of a phase and their learning-rate schedule.

    Attributes:
        members: The optimisers. No parameter belongs to two of them.
        factor: Progress in [0, 1) of all phases that share these optimisers -> factor on the initial learning rates.
        constant_rate: Those of the members whose learning rates never change.
    """

    members: tuple[torch.optim.Optimizer, ...]
    factor: Callable[[float], float]
    constant_rate: tuple[torch.optim.Optimizer, ...] = ()

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all members, each with its `lr`; changes in place take effect."""
        return [group for member in self.members for group in member.param_groups]


class TrainContext(Protocol):
    """What a method may use of the training when a phase or an epoch begins."""

    @property
    def epoch(self) -> int:
        """The epoch that begins, over all phases, from 0."""
        ...

    @property
    def epochs(self) -> int:
        """Of all phases together."""
        ...

    def generator(self, concern: str) -> torch.Generator:
        """The random generator of a concern (any name), on the training's device.

        It is seeded by the spec's seed and the concern, and checkpoints hold its state.
        """
        ...

    def noisy_accuracies(self) -> Sequence[float]:
        """Accuracy of the ensemble on held-out images by given labels, one an epoch; empty if none are held out."""
        ...

    def score(self, function: Callable[[Tensor], Tensor], *, views: int = 0) -> Tensor:
        """Apply a function to all images that are trained on, in evaluation mode and without gradients.

        Args:
            function: Takes images (B, 3, H, W), returns (B, ...).
            views: Average over so many augmented views of every image; 0 takes the unaugmented image.

        Returns:
            f32 (M, ...), by `Batch.index`.
        """
        ...

    def rendered(self, kind: str) -> Iterator[Tensor]:
        """Another rendering of all images that are trained on, as a network of the method sees one.

        Args:
            kind: "background", every image with its object filled by the mean background.

        Returns:
            Batches in the order of `Batch.index`: f32 (B, D) or (B, D, h, w), what the network's frozen part computes;
            or pictures (B, 3, S, S), where nothing is frozen.

        Raises:
            LookupError: This training makes no such rendering.
        """
        ...

    def record_logits(self, logits: Tensor) -> None:
        """Rank the given labels by these logits (M, C), by `Batch.index`; for a phase without steps, once an epoch.

        An image's logits must not come from a fit on its own label.
        """
        ...


@dataclass(frozen=True)
class Pass:
    """A pass of an epoch over a pool of images. A phase that trains its networks one after the other has one for each.

    A pool is a mask (M,) or positions int64 (n,); a position that occurs twice is shown twice.

    Attributes:
        pool: The labelled images. The steps of the pass show each once.
        unlabelled: The pool of images that are shown without labels beside them, again and again; None or empty: none.
        share: Of a batch that is unlabelled, if there are enough such images.
    """

    pool: Tensor
    unlabelled: Tensor | None = None
    share: float = 0.5


def no_preparation(_: TrainContext) -> None:
    """The default of `Phase.enter` and `Phase.begin_epoch`: does nothing."""


def no_step_hook(_: Batch) -> None:
    """The default of `Phase.before_step` and `Phase.after_step`: does nothing."""


@dataclass(frozen=True)
class Phase:
    """A part of a training with its own loss, data and optimisers.

    `enter` and `begin_epoch` may change parameters, buffers and `requires_grad`, and nothing else: a checkpoint holds
    these, and neither is called again when a training resumes inside an epoch.

    Attributes:
        epochs: How many; may be 0.
        loss: Batch -> scalar with a graph.
        optimizers: Builds the optimisers when the phase is entered; None keeps those of the phase before.
        before_step: Called after the backward pass and before the optimiser step, e.g. to mask gradients.
        after_step: Called after the optimiser step, e.g. to average weights.
        enter: Called once, before the first epoch, e.g. to reinitialise parts or estimate a transition matrix.
        begin_epoch: Called before every epoch, e.g. to score the images, divide them or refine labels.
        passes: The passes of the next epoch; None is one pass over all images. Without any pass the epoch takes no
            step, and `begin_epoch` does all of its work.
        views: The augmentations of every image that a batch has.
        clip: Limit of the joint gradient norm; None does not clip.
        batch_size: Images of a step, at most the training's; None is as many.
        name: Appears in reports.
    """

    epochs: int
    loss: Callable[[Batch], Tensor]
    optimizers: Callable[[], Optimizers] | None
    before_step: Callable[[Batch], None] = no_step_hook
    after_step: Callable[[Batch], None] = no_step_hook
    enter: Callable[[TrainContext], None] = no_preparation
    begin_epoch: Callable[[TrainContext], None] = no_preparation
    passes: Callable[[], Sequence[Pass]] | None = None
    views: tuple[View, ...] = ("weak",)
    clip: float | None = None
    batch_size: int | None = None
    name: str = "train"

    def images_per_step(self, batch_size: int) -> int:
        """How many images a step has in a training whose steps have `batch_size`."""
        return batch_size if self.batch_size is None else min(self.batch_size, batch_size)


class MethodParams(BaseModel):
    """A method's parameters: frozen, finite, and no field that the method does not know. Base of every `Params`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


class Method(nn.Module):
    """A strategy against label noise.

    What a method learns is a Parameter and what it remembers is a buffer, so `state_dict` is its whole state.
    """

    # prefixes that names in `state_dict` had in earlier versions -> today's, so that published models stay readable
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
        """The phases, whose epochs add up to `training.epochs`. They depend on nothing but the settings."""
        raise TypeError(f"{type(self).__name__} defines no phases")

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): the prediction of the trained method."""
        raise TypeError(f"{type(self).__name__} defines no prediction")

    def heads(self, images: Tensor) -> dict[str, Tensor]:
        """Every prediction worth reporting, by name: {ENSEMBLE: `logits` (B, C), "g1": ...}."""
        return {ENSEMBLE: self.logits(images)}

    def locate(self, images: Tensor) -> Tensor | None:
        """(B, 3, H, W) -> (B, 3): x and y of the object's centre and sigma, in network pixels.

        None without a localization module.
        """
        return None

    def findings(self) -> dict[str, Any]:
        """What the method has learnt of the data set, for its users: JSON values by name. Empty by default."""
        return {}

    def noise_estimate(self) -> NoiseEstimate | None:
        """What the method knows of the label noise, if the logits that it records are calibrated ones of clean classes.

        Given labels are then ranked by their posterior probability; None, the default, ranks them by margins.
        """
        return None

    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """`heads` and `locate` of (B, 3, H, W)."""
        return self.heads(images), self.locate(images)


@dataclass(frozen=True)
class NoiseEstimate:
    """How the given labels were mistaken, as a method has estimated it.

    Attributes:
        transition: T, f64 (C, C) on the CPU: P(given label j | clean class i), rows sum to 1.
        noise_rate: Share of wrong labels, in [0, 1].
        interval: Holds the true share in most cases.
    """

    transition: Tensor
    noise_rate: float
    interval: tuple[float, float]


def _rename_former_state(module: Method, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Before `state` is loaded: give names that an earlier version wrote today's prefixes, in place."""
    for former, current in module.former_state_names.items():
        for name in [name for name in state if name.startswith(prefix + former)]:
            state[prefix + current + name.removeprefix(prefix + former)] = state.pop(name)


@dataclass(frozen=True)
class TrainHyperparameters:
    """The part of the training spec that a method may know when it builds its phases.

    Attributes:
        epochs: Of all phases together.
        learning_rate: Of SGD, at the start of the schedule.
        momentum: Of SGD, in [0, 1).
        weight_decay: L2 penalty on the weights.
        factor: The spec's learning-rate schedule: progress of the training in [0, 1) -> factor on the learning rate.
        batch_size: Images of a step, labelled and unlabelled ones together.
    """

    epochs: int
    learning_rate: float
    momentum: float
    weight_decay: float
    factor: Callable[[float], float]
    batch_size: int = 128

    def sgd(
        self, parameters: Iterable[nn.Parameter], *, scale: float = 1.0, weight_decay: float | None = None
    ) -> torch.optim.Optimizer:
        """SGD with the spec's momentum.

        Args:
            parameters: What it optimises.
            scale: Factor on the spec's learning rate.
            weight_decay: Instead of the spec's.
        """
        optimizer = torch.optim.SGD(
            parameters,
            lr=self.learning_rate * scale,
            momentum=self.momentum,
            weight_decay=self.weight_decay if weight_decay is None else weight_decay,
            fused=True,  # one pass over the weights, and no other kind reads a tensor rate without waiting
        )
        optimizer.register_step_pre_hook(_begin_momentum)
        return optimizer


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Add the momentum of newly unfrozen parameters: fused SGD expects that all have one or none has."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def take_gradient_step(
    loss: Tensor,
    optimizers: Optimizers,
    clip: float | None = None,
    before: Callable[[], None] = lambda: None,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """One step of every optimiser, without a wait for the device.

    Args:
        loss: Scalar with a graph.
        optimizers: Of all parameters that the loss trains.
        clip: Limit of the joint gradient norm; None does not clip.
        before: Called after the backward pass and before clipping; may change gradients.
        scaler: Scales the loss for the backward pass; an optimiser whose gradients overflow takes no step. None, or one
            that is off, changes nothing.

    Returns:
        The loss, detached and not scaled.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    for optimizer in optimizers.members:
        optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    # of several networks a pass may train one, and a scaler refuses optimisers without gradients
    trained = [one for one in optimizers.members if _has_gradients(one)]
    for optimizer in trained:
        scaler.unscale_(optimizer)
    before()
    if clip is not None:
        parameters = [p for group in optimizers.groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in trained:
        scaler.step(optimizer)
    if trained:
        scaler.update()
    return loss.detach()


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
