"""The best mask that a model behind a frozen backbone has for a picture: border contrast, or its product with the class
activation where that is truer.

Class activation points at what the class is recognised by. On photographs of things that is the object, and the
product points better than the border contrast alone; on textures, or on pictures of none of the model's classes, it is
anything. How far the two maps agree tells the cases apart without labels: `trusts_activation` measures it on a few
pictures of the training. docs/log.md has the figures.

Shapes: `B` batch, `S` side, `C` classes, `D` features; pictures (B, 3, S, S) normalised, masks f32 (B, 1, h, w) in
[0, 1], each picture's largest value 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ml.evaluation import attention
from ml.features.encoder import Encoded
from ml.features.method_input import PictureMethod
from ml.method import Network


class PictureMaps(NamedTuple):
    """Both maps of each picture, over the same cells."""

    contrast: Tensor  # (B, 1, h, w)
    activation: Tensor | None  # (B, 1, h, w) of each picture's class; None without a linear classifier on feature maps


@torch.no_grad()
def compute_maps(method: PictureMethod, encoded: Encoded, classes: Tensor) -> PictureMaps | None:
    """Border contrast, and activation of a class in the method's first network, which sees the picture.

    Args:
        method: in evaluation mode.
        encoded: the pictures, by the method's input.
        classes: whose activation is computed, int64 (B,); mostly the predicted ones.

    Returns:
        The maps, or None where the backbone has no feature maps at stride 16.
    """
    if encoded.maps is None:
        return None
    contrast = method.input.localizer.contrast(encoded.maps)
    network = next(module for module in method.method.modules() if isinstance(module, Network))
    maps = _last_maps(network, encoded.output)
    maps = encoded.last_maps if maps is None else maps
    classifier = network.classifier
    if maps is None or not isinstance(classifier, nn.Linear) or classifier.in_features != maps.shape[1]:
        return PictureMaps(contrast, None)
    weights = classifier.weight - classifier.weight.mean(dim=0)
    activation = attention.activation_of(maps, weights[classes])
    if activation.shape != contrast.shape:
        activation = nn.functional.interpolate(activation, contrast.shape[2:], mode="bilinear")
    return PictureMaps(contrast, activation)


def trusts_activation(maps: PictureMaps) -> bool:
    """Whether the model's class activation is a factor of its masks: mean correlation with the border contrast >= .6.

    Args:
        maps: of a few pictures as the model was trained on, with the predicted classes.
    """
    if maps.activation is None:
        return False
    return float(attention.correlation(maps.contrast, maps.activation).mean()) >= attention.TRUSTED_CORRELATION


def uses_activation(maps: PictureMaps, *, with_activation: bool) -> list[bool]:
    """Whether class activation is a factor of each of the B masks that `mask` makes."""
    if not with_activation or maps.activation is None:
        return [False] * len(maps.contrast)
    agree: list[bool] = attention.agreeing(maps.contrast, maps.activation).tolist()
    return agree


def mask(maps: PictureMaps, *, with_activation: bool) -> Tensor:
    """The masks of pictures (B, 1, h, w); `with_activation` as `trusts_activation` said of the model."""
    if with_activation and maps.activation is not None:
        return attention.product_where_agreeing(maps.contrast, maps.activation)
    return maps.contrast


def _last_maps(network: Network, inputs: Tensor) -> Tensor | None:
    """The last feature maps that the trained part of a network computes; None where it has none."""
    maps: Tensor | None = None
    output = network.body(inputs)
    for stage in network.last_stage.children():
        if output.dim() == 4 and min(output.shape[2:]) > 1:
            maps = output
        output = stage(output)
    return maps
