"""The strong view of SOP+ and CORES*: AutoAugment's CIFAR-10 policy (Cubuk et al., CVPR 2019) and Cutout of half the
side (DeVries and Taylor 2017), as the released code of both has them.

Its magnitudes are not the paper's: a level is a tenth of an operation's range and not a ninth, blends have no random
sign, Posterize keeps 4 bits less a tenth of 4 for each level, and translations are by one pixel of 32 for each level.
What comes from outside the image is black. AutoAugment comes before cropping and mirroring, Cutout after normalisation,
so that its hole has the mean colour.

Every image draws one of the policy's 25 pairs of operations, each of which is applied with its own probability. The
whole batch goes through three stages (geometric, blending, tone) in which every image has its own magnitudes, most of
them without effect, so the GPU is never waited for. The operations equal torchvision's functional transforms up to
rounding, which take one magnitude for a whole batch or one image at a time.

Shapes: `B` images, `S` side; uint8 (B, S, S, 3) outside, planes (B, 3, S, S) inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

HOLE_SHARE = 2  # a hole is a square of S // 2: 16 of 32 pixels
LEVELS = 10  # of magnitude, 0 the lowest
POLICY_SIDE = 32  # pixels of the images whose translations the policy has in pixels
FILL = 0  # for pixels from outside the image
GREY = (0.2989, 0.587, 0.114)  # of red, green, blue: ITU-R 601-2

# the range of each operation whose magnitude grows with the level; the sign of the geometric ones is drawn at random
SIGNED = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 10.0, "TranslateY": 10.0, "Rotate": 30.0}  # pixels, degrees
BLEND_RANGE = (0.1, 1.9)  # weight of the image: 0 is the degenerate image, 1 the image itself
GEOMETRIC, BLENDS = tuple(SIGNED), ("Brightness", "Color", "Contrast", "Sharpness")
TONES = ("Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
OPERATIONS = (*GEOMETRIC, *BLENDS, *TONES)
NO_OPERATION = len(OPERATIONS)

# pairs of operation, probability and level; operations without a magnitude have level 0
POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 6)),  # in the paper Color has level 8 here
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


class Operations(NamedTuple):
    """One operation for each image of a batch; the names of operations are those of `OPERATIONS`."""

    operation: Tensor  # int64 (B,): a position in OPERATIONS, or NO_OPERATION
    magnitude: Tensor  # f32 (B,), in the operation's own unit

    def of(self, name: str, otherwise: float = 0.0) -> Tensor:
        """The magnitudes of images with this operation, `otherwise` for all others: f32 (B, 1, 1)."""
        return self.magnitude.where(self.is_(name), otherwise)[:, None, None]

    def is_(self, name: str) -> Tensor:
        """Which images have this operation: bool (B,)."""
        return self.operation == OPERATIONS.index(name)

    def rows(self, rows: Tensor) -> Operations:
        """The operations of some images, by rows int64 (b,)."""
        return Operations(self.operation[rows], self.magnitude[rows])


def auto_augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one of the policy's pairs of operations, drawn at random, to each image.

    Args:
        pixels: uint8 (B, S, S, 3) on the generator's device.
        generator: Draws the pairs, which of their operations are applied, and the signs.

    Returns:
        uint8 (B, S, S, 3).
    """
    planes = pixels.permute(0, 3, 1, 2).contiguous()
    count, side = len(planes), planes.shape[2]
    policy = _policy(side, planes.device)
    pair = torch.randint(0, len(policy.probability), (count,), generator=generator, device=planes.device)
    chance = torch.rand(2, count, generator=generator, device=planes.device)
    sign = torch.randint(0, 2, (2, count), generator=generator, device=planes.device) * 2 - 1
    for number in range(2):
        is_applied = chance[number] <= policy.probability[pair, number]
        magnitude = policy.magnitude[pair, number]
        operations = Operations(
            torch.where(is_applied, policy.operation[pair, number], NO_OPERATION),
            torch.where(policy.signed[pair, number], magnitude * sign[number], magnitude),
        )
        planes = apply(planes, operations)
    return planes.permute(0, 2, 3, 1).contiguous()


def apply(planes: Tensor, operations: Operations) -> Tensor:
    """Apply to each image of `planes` its operation: uint8 (B, 3, S, S)."""
    for stage, names in ((geometric, GEOMETRIC), (blend, BLENDS), (tone, TONES)):
        planes = _run_stage(planes, operations, stage, names)
    return planes


def _run_stage(
    planes: Tensor, operations: Operations, stage: Callable[[Tensor, Operations], Tensor], names: Sequence[str]
) -> Tensor:
    """Run a stage, which leaves images with operations of other stages as they are; a CPU can leave them out."""
    if planes.device.type != "cpu":  # a GPU would have to be waited for to know which
        return stage(planes, operations)
    rows = torch.from_numpy(np.flatnonzero(torch.stack([operations.is_(name) for name in names]).any(dim=0).numpy()))
    planes = planes.clone()
    planes[rows] = stage(planes[rows], operations.rows(rows))
    return planes


def geometric(planes: Tensor, operations: Operations) -> Tensor:
    """Shear, translate or rotate `planes`, uint8 (B, 3, S, S), with nearest-neighbour sampling."""
    side = planes.shape[2]
    line = torch.arange(side, device=planes.device) + 0.5  # middles of pixels
    x, y = line[None, None, :], line[None, :, None]
    half = side / 2
    angle = operations.of("Rotate") * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    # where each pixel comes from: a rotation is about the image's middle, a shear about its corner
    from_x = (
        cos * (x - half) - sin * (y - half) + half + operations.of("ShearX") * y - operations.of("TranslateX").trunc()
    )
    from_y = (
        sin * (x - half) + cos * (y - half) + half + operations.of("ShearY") * x - operations.of("TranslateY").trunc()
    )
    column, row = (from_x - 0.5).round().long(), (from_y - 0.5).round().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    places = (row.clamp(0, side - 1) * side + column.clamp(0, side - 1)).flatten(1)
    moved = planes.flatten(2).gather(2, places[:, None].expand(-1, 3, -1)).view_as(planes)
    return torch.where(inside[:, None], moved, FILL)


def blend(planes: Tensor, operations: Operations) -> Tensor:
    """Blend `planes`, uint8 (B, 3, S, S), with a black, grey, colourless or blurred image, or extrapolate from it."""
    image = planes.float()
    red, green, blue = image.unbind(dim=1)
    colourless = (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor()[:, None]  # (B, 1, S, S)
    flat = colourless.mean(dim=(2, 3), keepdim=True)
    degenerate = torch.where(_each(operations.is_("Sharpness")), _blurred(image), colourless)
    degenerate = torch.where(_each(operations.is_("Contrast")), flat, degenerate)
    degenerate = degenerate * _each(~operations.is_("Brightness"))
    weight = 1 + torch.stack([operations.of(name) for name in BLENDS]).sum(dim=0)[:, None]  # (B, 1, 1, 1)
    return torch.lerp(degenerate, image, weight).clamp_(0, 255).to(torch.uint8)


def _blurred(image: Tensor) -> Tensor:
    """Every pixel the mean of its nine neighbours, itself counted five times; the border stays."""
    side = image.shape[2]
    rows = image[:, :, : side - 2] + image[:, :, 1 : side - 1] + image[:, :, 2:]
    nine = rows[..., : side - 2] + rows[..., 1 : side - 1] + rows[..., 2:]
    middle = image[:, :, 1 : side - 1, 1 : side - 1]
    blurred = image.clone()
    blurred[:, :, 1 : side - 1, 1 : side - 1] = ((nine + 4 * middle) / 13).round()
    return blurred


def tone(planes: Tensor, operations: Operations) -> Tensor:
    """Map the values of `planes`, uint8 (B, 3, S, S), by a table of 256 entries for every channel of every image."""
    value = torch.arange(256, device=planes.device, dtype=torch.float32).expand(1, 1, 256)
    places = planes.flatten(2).long()
    inverted = 255 - value
    step = torch.exp2(8 - operations.of("Posterize", 8.0))
    table = torch.where(_rows(operations.is_("Invert")), inverted, value - value % step)
    table = torch.where(value >= operations.of("Solarize", 256.0), inverted, table)
    table = torch.where(_rows(operations.is_("AutoContrast")), _stretched(value, planes), table)
    table = torch.where(_rows(operations.is_("Equalize")), _levelled(value, places), table)
    return table.to(torch.uint8).expand(-1, 3, -1).gather(2, places).view_as(planes)


def _stretched(value: Tensor, planes: Tensor) -> Tensor:
    """Tables that map a channel's darkest value to 0 and its brightest to 255: (B, 3, 256)."""
    darkest, brightest = (
        extreme.flatten(1)[..., None].float() for extreme in (planes.amin((2, 3)), planes.amax((2, 3)))
    )
    stretched = ((value - darkest) * (255 / (brightest - darkest).clamp_min(1))).clamp(0, 255)
    return torch.where(brightest > darkest, stretched, value)


def _levelled(value: Tensor, places: Tensor) -> Tensor:
    """Tables that make all values of a channel about equally frequent: (B, 3, 256), whole numbers."""
    counts = places.new_zeros(*places.shape[:2], 256).scatter_add_(2, places, torch.ones_like(places))
    of_brightest = counts.gather(2, places.amax(dim=2, keepdim=True))
    step = (places.shape[2] - of_brightest) // 255
    below = counts.cumsum(dim=2) - counts
    levelled = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    return torch.where(step > 0, levelled.float(), value)


def _each(chosen: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return chosen[:, None, None, None]


def _rows(chosen: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1)."""
    return chosen[:, None, None]


class _Policy(NamedTuple):
    """25 pairs of operations, each (25, 2)."""

    operation: Tensor
    probability: Tensor
    magnitude: Tensor
    signed: Tensor


@functools.cache
def _policy(side: int, device: torch.device) -> _Policy:
    """`POLICY` for images of `side` pixels."""
    return _Policy(
        torch.tensor([[OPERATIONS.index(name) for name, _, _ in pair] for pair in POLICY], device=device),
        torch.tensor([[probability for _, probability, _ in pair] for pair in POLICY], device=device),
        torch.tensor([[magnitude(name, level, side) for name, _, level in pair] for pair in POLICY], device=device),
        torch.tensor([[name in SIGNED for name, _, _ in pair] for pair in POLICY], device=device),
    )


def magnitude(name: str, level: int, side: int) -> float:
    """The magnitude of an operation at a level of the policy.

    Args:
        name: One of `OPERATIONS`.
        level: 0 to `LEVELS`.
        side: S, in which translations are measured.

    Returns:
        In the operation's own unit: a share (shear), what is added to an image's weight of 1 (blends), degrees
        (Rotate), pixels (translations), the number of bits that stay (Posterize) or a threshold of pixel values
        (Solarize).
    """
    strength = level / LEVELS
    if name in BLENDS:
        lowest, highest = BLEND_RANGE
        return lowest + (highest - lowest) * strength - 1
    match name:
        case "Posterize":
            return 4 - int(4 * strength)
        case "Solarize":
            return 256 - int(256 * strength)
        case "Rotate":
            return int(SIGNED[name] * strength)
        case "TranslateX" | "TranslateY":
            return SIGNED[name] * strength * side / POLICY_SIDE
    return SIGNED.get(name, 0.0) * strength


def cut_out(images: Tensor, generator: torch.Generator) -> Tensor:
    """Put a square of zeros, cut at the border, around a random pixel of each of `images` (B, 3, S, S), in place."""
    count, side = len(images), images.shape[2]
    hole = side // HOLE_SHARE
    centres = torch.randint(0, side, (2, count, 1), generator=generator, device=images.device)
    places = torch.arange(side, device=images.device) - (centres - hole // 2)  # (2, B, S), from the hole's first pixel
    inside = (places >= 0) & (places < hole)
    covered = inside[0][:, :, None] & inside[1][:, None, :]
    return images.masked_fill_(covered[:, None], 0)  # in place, so that the layout stays
