"""What DeNLL's two networks look at: an object before its own background, or before the mean background of all classes.

The readings of the paper's Eq. 4 and 5 are settings here. It sees given labels only to average backgrounds by class,
and knows no loss on them.

Shapes: `B` batch, `C` classes, images `(B, 3, H, W)` normalised, masks `(B, 1, H, W)`, features `(B, D)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ml.blocks import background, localization
from ml.method import Batch, MethodParams
from ml.networks import chain


class DeconfoundingParams(MethodParams):
    """How an image is divided, and what a network is shown of it."""

    split: Literal["complement", "median", "median_by_channel", "median_normalised", "median_mask"] = Field(
        default="complement",
        description="complement: f = M·x, b = (1 - M)·x; median: Eq. 5 to the letter, on pixels from 0 to 1; "
        "median_by_channel: with a median for each channel; median_normalised: on the pixels as networks read them; "
        "median_mask: the pixels above the median of M·x are the foreground.",
    )
    fusion: Literal["composite", "concat"] = Field(
        default="composite", description="How a network reads f and b. composite: their sum; concat: six channels."
    )
    background: Literal["class_mean", "zero"] = Field(
        default="class_mean",
        description="What the second network sees behind the object. class_mean: the classes' mean background; zero: "
        "the mean colour, a control.",
    )
    bank_kept: float = Field(
        default=0.9,
        ge=0.0,
        lt=1.0,
        description="Share of a class's mean background that stays at each batch. What trembles behind the object "
        "makes batch statistics tremble: 0.99 where the second network answers alone.",
    )
    dim: bool = Field(default=True, description="Off (Table 4, w/o DIM): the second network sees the own background.")
    lm: Literal["learned", "fixed", "off"] = Field(
        default="learned",
        description="learned: a Gaussian in each image; fixed (Table 4, w/o LM): the central 24/32; off: no mask.",
    )
    localization: Literal["joint", "label_free"] = Field(
        default="joint",
        description="What trains the localization module. joint: the loss on the given labels; label_free: only "
        "that it leaves a homogeneous background.",
    )
    centre: Literal["linear", "soft_argmax"] = Field(
        default="linear",
        description="linear: one linear layer, in the middle half; soft_argmax: a heat map, anywhere.",
    )
    sigma: Literal["bounded", "fixed"] = Field(
        default="bounded", description="bounded: learned, between 0.2 and 1 of the side; fixed: sigma_fraction."
    )
    sigma_fraction: float = Field(
        default=0.3, ge=0.02, le=1.0, description="A fixed sigma, as a share of the image's side."
    )
    lm_learning_rate: float = Field(
        default=0.1, gt=0.0, le=100.0, description="The localization module's learning rate, times the network's."
    )


class Deconfounder(nn.Module):
    """What both networks share: where the object is, what lies around it, and what lies around each class's objects."""

    def __init__(self, params: DeconfoundingParams, class_count: int, image_size: int) -> None:
        super().__init__()
        self.params = params
        self.localization = (
            localization.LocalizationModule(image_size, params.centre, params.sigma, params.sigma_fraction)
            if params.lm == "learned"
            else None
        )
        self.bank = background.ClassBackgroundAverage(class_count, image_size, params.bank_kept)
        self.unit = background.UnitRange()
        self._split_of: dict[int, tuple[Tensor, Tensor, background.Split]] = {}  # of this step's images, by identity

    def shown(self, images: Tensor, second: bool) -> Tensor:
        """What g1 (f with b) or g2 (f with b̄, Eq. 4) looks at: (B, 3, H, W), or (B, 6, H, W) where they are stacked."""
        p = self.params
        behind_own = not (second and p.dim) or p.lm == "off"
        if p.fusion == "composite" and p.split == "complement" and behind_own:
            return images  # f + b is the image
        _, (front, own) = self.split(images)
        behind = own if behind_own else self.bank.mean() * (p.background != "zero")
        return front + behind if p.fusion == "composite" else torch.cat([front, behind.expand_as(front)], dim=1)

    def split(self, images: Tensor) -> tuple[Tensor, background.Split]:
        """Mask and split; computed once for each tensor of a step."""
        if id(images) in self._split_of:
            _, mask, split = self._split_of[id(images)]
            return mask, split
        mask = self._mask(images)
        used = mask.detach() if self.params.localization == "label_free" else mask
        if self.params.split == "complement":
            split = background.complement(images, used)
        elif self.params.split == "median_normalised":
            split = background.median(images, used)
        elif self.params.split in ("median", "median_by_channel"):
            split = background.median(self.unit(images), used, by_channel=self.params.split == "median_by_channel")
        else:
            split = background.median_mask(images, used, self.unit(images))
        return mask, split

    def begin(self, batch: Batch) -> None:
        """Split a step's images once for everyone, and let the bank see their backgrounds."""
        mask, split = self.split(batch.images)
        self._split_of = {id(batch.images): (batch.images, mask, split)}
        self.bank.update(split.background.detach(), batch.labels)

    def end(self) -> None:
        """Forget the step's images."""
        self._split_of = {}

    def label_free_loss(self, images: Tensor) -> Tensor | None:
        """What alone trains the localization module if nothing that uses labels may."""
        if self.params.localization == "label_free" and self.localization is not None:
            return localization.homogeneity_loss(images, self.split(images)[0])
        return None

    def _mask(self, images: Tensor) -> Tensor:
        if self.params.lm == "fixed":
            return localization.central_mask(images)
        if self.localization is None:
            return torch.ones_like(images[:, :1])
        gaussians = self.localization(images)
        if self.params.localization == "label_free":  # the objective would be best served by a mask over everything
            gaussians = torch.cat([gaussians[:, :2], gaussians[:, 2:].detach()], dim=1)
        return localization.gaussian_mask(gaussians, images.shape[2], images.shape[3])


class Activations(NamedTuple):
    """One forward pass of a branch."""

    images: Tensor
    features: Tensor
    logits: Tensor


class Gates(nn.Module):
    """o_k = a_k·l_k + (1 - a_k)·l_other with a_k in [1/2, 1]: no network can be dropped, nor the two made one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own = nn.Linear(width, 2)  # one row for each network
        self.reset()

    def reset(self) -> None:
        """Weights and biases at 0, so a_k at 3/4."""
        nn.init.zeros_(self.own.weight)
        nn.init.zeros_(self.own.bias)

    def forward(self, one: Activations, two: Activations, *, detached: bool = False) -> tuple[Tensor, Tensor]:
        """o_1 and o_2 (B, C), in f32; `detached` lets only the gates learn from them."""
        seen = torch.cat([one.features, two.features], dim=1).float()
        l1, l2 = one.logits.float(), two.logits.float()
        if detached:
            seen, l1, l2 = seen.detach(), l1.detach(), l2.detach()
        with torch.autocast(seen.device.type, enabled=False):
            a1, a2 = (0.5 + 0.5 * torch.sigmoid(self.own(seen))).split(1, dim=1)  # type: ignore[no-untyped-call]
        return a1 * l1 + (1 - a1) * l2, a2 * l2 + (1 - a2) * l1


class ActivationRecorder:
    """What a branch computes while somebody listens."""

    def __init__(self) -> None:
        self.records: list[Activations] = []
        self._heard = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        self.records, self._heard = [], True
        try:
            yield
        finally:
            self.records, self._heard = [], False

    def note(self, record: Activations) -> None:
        if self._heard:
            self.records.append(record)


class DebiasedBranch(chain.Chain):
    """g1 or g2: a network of the user's choice, which sees what `shown` makes of an image."""

    def __init__(self, network: chain.Chain, shown: Callable[[Tensor], Tensor], tape: ActivationRecorder) -> None:
        super().__init__(network.body, network.last_stage, network.classifier, network.image_size)
        self.shown = shown

        def note(record: Activations) -> None:  # no bound method: a copy of the branch shares the recorder
            tape.note(record)

        self.note: Callable[[Activations], None] = note

    def features(self, images: Tensor) -> Tensor:
        """Of what the branch is shown of the images: (B, D)."""
        return super().features(self.shown(images))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        logits: Tensor = self.classifier(features)
        self.note(Activations(images, features, logits))
        return logits


def find_branches(host: nn.Module) -> list[DebiasedBranch]:
    """Those that a host trains, copies it made of them among them."""
    return [module for module in host.modules() if isinstance(module, DebiasedBranch)]


def make_branch(network: chain.Chain, core: Deconfounder, tape: ActivationRecorder, second: bool) -> DebiasedBranch:
    """A network made to read what `core` shows it. `core` and `tape` are shared by every copy a host makes of it."""
    if core.params.fusion == "concat":
        chain.widen_stem(network, 6)
    return DebiasedBranch(network, lambda images: core.shown(images, second), tape)
