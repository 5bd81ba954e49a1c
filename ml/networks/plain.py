"""A network as the library builds it that published the architecture, so that its weights can be used without us.

The state of such a network has the `Chain.published_names` of ours, and it computes the same.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

from torch import nn

from ml import networks
from ml.networks import chain, resnet, timm_zoo, torchvision_zoo

LITE = {"efficientnet_lite0": "tf_efficientnet_lite0"}  # ours -> timm's


class PlainNetwork(NamedTuple):
    """A network of another library.

    Attributes:
        package: torchvision or timm.
        code: The lines of Python that make it as `model`, where `torch` is imported.
        model: (B, 3, H, W) -> logits (B, C), freshly initialised.
    """

    package: str
    code: tuple[str, ...]
    model: nn.Module


def build(name: str, classes: int, image_size: int, *, published_stem: bool) -> PlainNetwork | None:
    """The library's own network.

    Args:
        name: As of `ml.networks.build`.
        classes: C.
        image_size: Height and width of its images in pixels.
        published_stem: Whether ours has the stem of the published architecture.

    Returns:
        The network; None where no library that is installed has it (`small`, `preact_resnet18`).
    """
    architecture = networks.architecture(name)
    if architecture in LITE or architecture.startswith(timm_zoo.PREFIX):
        return _timm(architecture, classes, image_size, published_stem)
    if architecture in resnet.BLOCKS or architecture in torchvision_zoo.summaries():
        model, lines = torchvision_zoo.build_plain(architecture, classes, image_size, published_stem)
        return PlainNetwork("torchvision", tuple(lines), model)
    return None


def _timm(architecture: str, classes: int, image_size: int, published_stem: bool) -> PlainNetwork | None:
    if importlib.util.find_spec("timm") is None:
        return None
    timm = timm_zoo.import_timm(architecture)
    name = LITE.get(architecture, architecture.removeprefix(timm_zoo.PREFIX))
    config = timm.models.get_pretrained_cfg(name)
    options: dict[str, int] = {"num_classes": classes}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    model = timm.create_model(name, **options)
    arguments = ", ".join(f"{option}={value!r}" for option, value in options.items())
    lines = ["import timm", f"model = timm.create_model({name!r}, {arguments})"]
    if architecture in LITE and chain.keeps_resolution(image_size, published_stem):
        model.conv_stem.stride = (1, 1)
        lines.append("model.conv_stem.stride = (1, 1)")
    return PlainNetwork("timm", tuple(lines), model)
