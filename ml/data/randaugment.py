"""RandAugment (Cubuk et al., NeurIPS 2020): two operations drawn for each image, all at one magnitude.

Operations, probabilities, magnitudes and black fill are those of torchvision's `RandAugment`; `ml.data.autoaugment`
applies them to a whole batch at once.

Shapes: `B` images, `S` side; uint8 (B, S, S, 3).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ml.data import autoaugment
from ml.data.autoaugment import NO_OPERATION, OPERATIONS, Operations

TIMES = 2  # operations applied to each image
LARGEST = 30  # magnitude

# the largest magnitude of each operation whose sign is drawn at random: shares of the side, degrees, and what is added
# to an image's weight of 1
SIGNED = {
    "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331, "TranslateY": 150 / 331, "Rotate": 30.0,
    "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9,
}  # fmt: skip
NAMES = (*SIGNED, "Posterize", "Solarize", "AutoContrast", "Equalize")  # and the identity


def augment(pixels: Tensor, magnitude: int, generator: torch.Generator) -> Tensor:
    """Apply two random operations to each image.

    Args:
        pixels: uint8 (B, S, S, 3) on the generator's device.
        magnitude: 0 to `LARGEST`; 9 is torchvision's default.
        generator: Draws the operations and their signs.

    Returns:
        uint8 (B, S, S, 3).
    """
    planes = pixels.permute(0, 3, 1, 2).contiguous()
    choices = _choices(magnitude, planes.shape[2], planes.device)
    shape = (TIMES, len(planes))
    drawn = torch.randint(0, len(choices.magnitude), shape, generator=generator, device=planes.device)
    signs = torch.randint(0, 2, shape, generator=generator, device=planes.device) * 2 - 1
    for choice, sign in zip(drawn, signs, strict=True):
        plain = choices.magnitude[choice]
        signed = torch.where(choice < len(SIGNED), plain * sign, plain)
        planes = autoaugment.apply(planes, Operations(choices.operation[choice], signed))
    return planes.permute(0, 2, 3, 1).contiguous()


@functools.cache
def _choices(magnitude: int, side: int, device: torch.device) -> Operations:
    """What is drawn from: `NAMES`, then the identity; each (14,)."""
    numbers = [*map(OPERATIONS.index, NAMES), NO_OPERATION]
    magnitudes = [*(operation_magnitude(name, magnitude, side) for name in NAMES), 0.0]
    return Operations(torch.tensor(numbers, device=device), torch.tensor(magnitudes, device=device))


def operation_magnitude(name: str, magnitude: int, side: int) -> float:
    """The magnitude of one of `NAMES` in its own unit; see `ml.data.autoaugment.magnitude`.

    Args:
        name: Of the operation.
        magnitude: 0 to `LARGEST`.
        side: S, in which translations are measured.
    """
    strength = magnitude / LARGEST
    match name:
        case "Posterize":
            return 8 - round(4 * strength)
        case "Solarize":
            return 255 * (1 - strength)
        case "TranslateX" | "TranslateY":
            return SIGNED[name] * side * strength
    return SIGNED.get(name, 0.0) * strength
