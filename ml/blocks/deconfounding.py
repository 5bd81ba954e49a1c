"""The inputs of DeNLL's two networks: an image with its own background, or with the average background of all classes.

The readings of the paper's Eq. 4 and 5 are parameters here. Given labels are used to average backgrounds by class, and
no loss is computed on them.

Shapes: `B` batch, `C` classes, `D` features; images `(B, 3, H, W)` normalised, masks `(B, 1, H, W)`, features `(B, D)`,
logits `(B, C)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ml.blocks import background, localization, losses
from ml.method import Batch, MethodParams


class DeconfoundingParams(MethodParams):
    """How an image is split, and what each network sees of it."""

    split: Literal["complement", "median", "median_by_channel", "median_normalised", "median_mask"] = Field(
        default="complement",
        description="complement: f = M·x, b = (1 - M)·x; median: Eq. 5 as printed, on pixels from 0 to 1; "
        "median_by_channel: with a median for each channel; median_normalised: on normalised pixels; "
        "median_mask: the pixels above the median of M·x are the foreground.",
    )
    fusion: Literal["composite", "concat"] = Field(
        default="composite", description="How a network reads f and b. composite: their sum; concat: six channels."
    )
    background: Literal["class_mean", "zero"] = Field(
        default="class_mean",
        description="The background that the second network sees. class_mean: the average background of all classes; "
        "zero: the mean colour, a control.",
    )
    bank_kept: float = Field(
        default=0.9,
        ge=0.0,
        lt=1.0,
        description="Momentum of each class's average background, per batch. A changing background also changes the "
        "batch statistics: 0.99 where the second network predicts alone.",
    )
    # clients send the paper's abbreviation, DIM
    background_intervention: bool = Field(
        default=True,
        alias="dim",
        description="Off (Table 4, w/o DIM): the second network sees each image's own background.",
    )
    lm: Literal["learned", "fixed", "off"] = Field(
        default="learned",
        description="The mask. learned: a Gaussian in each image; fixed (Table 4, w/o LM): the central 24/32 of each "
        "side; off: no mask.",
    )
    localization: Literal["joint", "label_free", "backbone"] = Field(
        default="joint",
        description="What finds the object. joint: a module that learns from the loss on the given labels; label_free: "
        "one that learns only how homogeneous the background is; backbone: what stands out in the feature maps of the "
        "pretrained network.",
    )
    centre: Literal["linear", "soft_argmax"] = Field(
        default="linear",
        description="How the mask's centre is predicted. linear: one linear layer, within the middle half of the "
        "image; soft_argmax: a heat map, anywhere.",
    )
    sigma: Literal["bounded", "fixed"] = Field(
        default="bounded",
        description="The mask's width. bounded: learned, between 0.2 and 1 of the side; fixed: sigma_fraction.",
    )
    sigma_fraction: float = Field(
        default=0.3, ge=0.02, le=1.0, description="A fixed sigma, as a share of the image's side."
    )
    lm_learning_rate: float = Field(
        default=0.1, gt=0.0, le=100.0, description="The localization module's learning rate, times the network's."
    )

    @model_validator(mode="after")
    def _a_backbone_sees_composites(self) -> DeconfoundingParams:
        if self.localization == "backbone" and (self.fusion, self.split) != ("composite", "complement"):
            raise ValueError("localization: a backbone sees composites of complements, f + b and f + b̄")
        return self


class Deconfounder(nn.Module):
    """What both networks share: the localization module and the average background of each class."""

    def __init__(self, params: DeconfoundingParams, class_count: int, image_size: int) -> None:
        """Build the shared parts.

        Args:
            params: the readings.
            class_count: C.
            image_size: H = W in pixels.
        """
        super().__init__()
        self.params = params
        self.localization = (
            localization.LocalizationModule(image_size, params.centre, params.sigma, params.sigma_fraction)
            if params.lm == "learned"
            else None
        )
        self.class_background = background.ClassBackgroundAverage(class_count, image_size, params.bank_kept)
        self.unit_range = background.UnitRange()
        # mask and split of the current step's images, by the identity of their tensor
        self._cached_split: dict[int, tuple[Tensor, Tensor, background.ImageSplit]] = {}

    @property
    def changes_first(self) -> bool:
        """Whether g1 sees anything else than the image: f + b of complements is the image itself."""
        return (self.params.fusion, self.params.split) != ("composite", "complement")

    def network_input(self, images: Tensor, *, second: bool) -> Tensor:
        """What g1 or g2 sees: (B, 3, H, W), or (B, 6, H, W) where foreground and background are concatenated.

        Args:
            images: (B, 3, H, W).
            second: the input of g2, f with b̄ (Eq. 4); otherwise that of g1, f with b.
        """
        p = self.params
        own_background = not (second and p.background_intervention) or p.lm == "off"
        if own_background and not self.changes_first:
            return images  # f + b is the image
        _, (foreground, own) = self.split(images)
        used = own if own_background else self.class_background.mean() * (p.background != "zero")
        return foreground + used if p.fusion == "composite" else torch.cat([foreground, used.expand_as(own)], dim=1)

    def split(self, images: Tensor) -> tuple[Tensor, background.ImageSplit]:
        """Mask (B, 1, H, W), and foreground and background, of images (B, 3, H, W); cached within a step."""
        if id(images) in self._cached_split:
            _, mask, split = self._cached_split[id(images)]
            return mask, split
        mask = self._mask(images)
        used = mask.detach() if self.params.localization == "label_free" else mask
        if self.params.split == "complement":
            split = background.complement(images, used)
        elif self.params.split == "median_normalised":
            split = background.median(images, used)
        elif self.params.split in ("median", "median_by_channel"):
            by_channel = self.params.split == "median_by_channel"
            split = background.median(self.unit_range(images), used, by_channel=by_channel)
        else:
            split = background.median_mask(images, used, self.unit_range(images))
        return mask, split

    @contextmanager
    def step(self, batch: Batch) -> Iterator[None]:
        """A step on this batch: its images are split once for both networks, and their backgrounds are averaged."""
        mask, split = self.split(batch.images)
        self._cached_split = {id(batch.images): (batch.images, mask, split)}
        self.class_background.update(split.background.detach(), batch.labels)
        try:
            yield
        finally:
            self._cached_split = {}

    def label_free_loss(self, images: Tensor) -> Tensor | None:
        """The loss, a scalar, that alone trains the localization module; None if the loss on given labels does."""
        if self.params.localization == "label_free" and self.localization is not None:
            return localization.homogeneity_loss(images, self.split(images)[0])
        return None

    def _mask(self, images: Tensor) -> Tensor:
        if self.params.lm == "fixed":
            return localization.central_mask(images)
        if self.localization is None:
            return torch.ones_like(images[:, :1])
        gaussians = self.localization(images)
        if self.params.localization == "label_free":  # a learned sigma would grow until the mask covers the image
            gaussians = torch.cat([gaussians[:, :2], gaussians[:, 2:].detach()], dim=1)
        return localization.gaussian_mask(gaussians, images.shape[2], images.shape[3])


class PairedInputs(nn.Module):
    """The inputs of both networks where they come as pairs: those of g1 and of g2, side by side on axis 1.

    It has the interface of `Deconfounder`. `ml.features.method_input` locates objects and makes the composites.
    """

    localization = None  # nothing is trained
    changes_first = False  # g1 sees the image

    def __init__(self, params: DeconfoundingParams) -> None:
        """Keep the readings, which `branches.make_branch` asks for."""
        super().__init__()
        self.params = params

    def network_input(self, inputs: Tensor, *, second: bool) -> Tensor:
        """The half of (B, 2D), or of maps (B, 2D, h, w), that g1 or g2 sees."""
        return inputs.chunk(2, dim=1)[second]

    def step(self, batch: Batch) -> AbstractContextManager[None]:
        """A step on this batch: nothing is shared."""
        return nullcontext()

    def label_free_loss(self, images: Tensor) -> None:
        """None: nothing here is trained."""


def make_deconfounder(params: DeconfoundingParams, class_count: int, image_size: int) -> Deconfounder | PairedInputs:
    """What makes the inputs of both networks, as the params say; arguments as of `Deconfounder`."""
    if params.localization == "backbone":
        return PairedInputs(params)
    return Deconfounder(params, class_count, image_size)


class Activations(NamedTuple):
    """One forward pass of a branch."""

    images: Tensor  # (B, 3, H, W)
    features: Tensor  # (B, D)
    logits: Tensor  # (B, C)


class Gates(nn.Module):
    """The dynamic gates of Eq. 6: o_k = a_k·l_k + (1 - a_k)·l_other with a_k in [1/2, 1].

    The bounds keep the gates from dropping a network and from making both outputs the same.
    """

    def __init__(self, width: int) -> None:
        """Start at a_k = 3/4; `width` is the number of features of both networks together."""
        super().__init__()
        self.linear = nn.Linear(width, 2)  # one row for each network
        self.reset()

    def reset(self) -> None:
        """Set weights and biases to 0, so a_k to 3/4."""
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, one: Activations, two: Activations, *, detached: bool = False) -> tuple[Tensor, Tensor]:
        """o_1 and o_2, f32 (B, C).

        Args:
            one: of g1.
            two: of g2, on the same images.
            detached: no gradient into the networks.
        """
        features = torch.cat([one.features, two.features], dim=1).float()
        l1, l2 = one.logits.float(), two.logits.float()
        if detached:
            features, l1, l2 = features.detach(), l1.detach(), l2.detach()
        with torch.autocast(features.device.type, enabled=False):
            a1, a2 = (0.5 + 0.5 * torch.sigmoid(self.linear(features))).split(1, dim=1)  # type: ignore[no-untyped-call]
        return a1 * l1 + (1 - a1) * l2, a2 * l2 + (1 - a2) * l1

    def loss(
        self, passes: Iterable[tuple[Activations, Activations]], batch: Batch, *, detached: bool = False
    ) -> Tensor:
        """CE(o_1, y') + CE(o_2, y'), summed over passes: a scalar.

        Args:
            passes: of g1 and g2 on the batch's images.
            batch: has their given labels.
            detached: no gradient into the networks.
        """
        total = torch.zeros((), device=batch.labels.device)
        for one, two in passes:
            for gated in self(one, two, detached=detached):
                total = total + _label_loss(gated, batch)
        return total


def _label_loss(gated: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of one output (B, C) of the gates on the batch's given labels: a scalar."""
    return batch.label_loss(lambda labels, _: losses.cross_entropy(gated, labels))
