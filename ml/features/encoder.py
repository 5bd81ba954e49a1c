"""The frozen part of a pretrained network: pictures in, features or feature maps out, without gradients.

It computes in the fastest precision that agrees with f32: convolutions take over the batch normalisation that follows
them, memory is channels_last, and arithmetic bf16 where the processor has it.

Shapes: `B` batch, `S` side, pictures (B, 3, S, S) normalised, feature maps (B, D, h, w), features (B, D).
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

LOCALIZER_STRIDE = 16  # objects are located in the deepest maps that are not coarser than this
AGREEING_COSINE = 0.995  # least similarity of an image's output to that in f32
CHECKED_IMAGES = 4  # by which a faster encoder is compared with the exact one


class Encoded(NamedTuple):
    """What the encoder computes of B pictures."""

    output: Tensor  # f32 (B, D) or (B, D, h, w): what the trained part of the network sees
    maps: Tensor | None  # f32 (B, D', h', w'): the maps in which objects are located; None where there are none
    last_maps: Tensor | None = None  # f32 (B, D'', h'', w''): the deepest feature maps


class Encoder(nn.Module):
    """A frozen sequence of modules.

    Attributes:
        stages: Applied one after the other.
        uses_bf16: Whether it computes in bf16.
    """

    def __init__(self, stages: nn.Sequential, image_size: int) -> None:
        """Freeze the stages, which are used as they are; `prepare` makes them fast.

        Args:
            stages: From pictures to features or feature maps.
            image_size: S.
        """
        super().__init__()
        self.stages = stages.eval().requires_grad_(False)
        self.image_size = image_size
        self.uses_bf16 = False

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode: batch normalisation keeps its pretrained statistics."""
        return super().train(False)

    @torch.no_grad()
    def prepare(self, pictures: Tensor, *, half: bool) -> Encoder:
        """A faster encoder with the same outputs, up to rounding.

        Args:
            pictures: A few (B, 3, S, S), by which it is checked.
            half: Compute in bf16 if that agrees.

        Returns:
            A new encoder on the same device; this one is unchanged.
        """
        exact = self(pictures[:CHECKED_IMAGES]).output
        fast = Encoder(copy.deepcopy(self.stages), self.image_size)
        _fuse_batch_norms(fast.stages)
        if not torch.allclose(fast(pictures[:CHECKED_IMAGES]).output, exact, rtol=1e-3, atol=1e-3):
            fast = Encoder(copy.deepcopy(self.stages), self.image_size)  # its modules do not run in their order
        fast.to(memory_format=torch.channels_last)
        if half:
            rounded = copy.deepcopy(fast).bfloat16()
            rounded.uses_bf16 = True
            similarity = nn.functional.cosine_similarity(
                rounded(pictures[:CHECKED_IMAGES]).output.flatten(1), exact.flatten(1)
            )
            if float(similarity.min()) >= AGREEING_COSINE:
                return rounded
        return fast

    def forward(self, pictures: Tensor) -> Encoded:
        """Encode pictures (B, 3, S, S); gradients flow to the pictures, not to the weights."""
        least_side = math.ceil(self.image_size / LOCALIZER_STRIDE)
        dtype = torch.bfloat16 if self.uses_bf16 else torch.float32
        with torch.autocast(pictures.device.type, enabled=False):
            output = pictures.to(dtype, memory_format=torch.channels_last)
            maps: Tensor | None = None
            last_maps: Tensor | None = None
            for stage in self.stages:
                output = stage(output)
                if output.dim() == 4 and min(output.shape[2:]) >= 2:
                    last_maps = output
                if output.dim() == 4 and min(output.shape[2:]) >= max(2, least_side):
                    maps = output
        return Encoded(output.float(), _as_f32(maps), _as_f32(last_maps))


def _as_f32(maps: Tensor | None) -> Tensor | None:
    return None if maps is None else maps.float()


def _fuse_batch_norms(module: nn.Module) -> None:
    """Let convolutions take over the batch normalisation that is the next module of the same parent, in place."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None and isinstance(previous[1], nn.Conv2d):
            if previous[1].out_channels == child.num_features:
                setattr(module, previous[0], fusion.fuse_conv_bn_eval(previous[1], child))
                setattr(module, name, nn.Identity())
            previous = None
            continue
        _fuse_batch_norms(child)
        previous = (name, child)
