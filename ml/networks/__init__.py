"""Networks by name: `names`, `build`, `about`, `required_shapes`.

A family is a file here with `summaries()` and `build(...)`. torchvision's family comes last, since its names are
known only after importing torchvision.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ml.formats import tensor_shapes
from ml.formats.tensor_shapes import Shape
from ml.networks import chain, timm_zoo, torchvision_zoo
from ml.networks.chain import Chain

NOT_FAMILIES = ("chain", "plain", "weights", "weights_sources")
SLOW = "torchvision_zoo"
ABOUT_IMAGE_SIZE = 32
PUBLISHED_IMAGE_SIZE = 224  # what networks of ImageNet are published for


class UnknownNetwork(ValueError):
    """No network has this name, or it cannot read images of this size."""


def names() -> tuple[str, ...]:
    """Every network that can be built: our own first, then torchvision's (imports torchvision)."""
    return tuple(name for family in _families() for name in family.summaries())


def build(
    name: str, classes: int, image_size: int, pretrained: Path | None = None, *, published_stem: bool | None = None
) -> Chain:
    """A fresh network.

    Args:
        name: one of `names()`, or one with a tag, as `efficientnet_lite0.satellite`, which says whose weights.
        classes: C, the width of its output.
        image_size: height and width of its images in pixels.
        pretrained: a safetensors file with weights of the same architecture; None starts at random.
        published_stem: keep the architecture as it is published, however small the images are. By default so where it
            is pretrained; a network that is rebuilt to take a model's weights is told.

    Raises:
        UnknownNetwork: for an unknown name, or a size that this network cannot read.
        errors.MissingWeights: if the weights do not fit.
    """
    family = _family_of(name)
    try:
        stem = pretrained is not None if published_stem is None else published_stem
        network: Chain = family.build(architecture(name), classes, image_size, pretrained, stem)
        if family.__name__.endswith(SLOW):
            _check_forward(network, image_size)
    except (RuntimeError, ZeroDivisionError, AssertionError) as error:  # torchvision's ways to refuse a size
        raise UnknownNetwork(f"{name} cannot read images of {image_size} px: {error}") from error
    except ValueError as error:
        if "input size" in str(error).lower():
            raise UnknownNetwork(f"{name} cannot read images of {image_size} px: {error}") from error
        raise
    return network


def check_name(name: str) -> None:
    """Raise UnknownNetwork unless `build` knows the name; imports torchvision only where none of ours has it."""
    _family_of(name)


def architecture(name: str) -> str:
    """The name without its tag: `resnet50` of `resnet50.imagenet1k_v1`."""
    return name.partition(".")[0]


def about(name: str) -> dict[str, Any]:
    """What the catalog says of a network.

    Returns:
        `summary`; `parameters` (10 classes); `flops_per_image` of one forward pass at 32 px, None if it cannot read
        them; `costs`, the `flops` and `activations` (numbers that its layers put out) of a forward pass of one image of
        `image_size`, 32 px with the stem for small images and 224 px with the published one, as far as it reads them;
        `min_image_size`, the smallest of 32, 64 and 224 px that it reads; `pretrained`, what is published of its
        weights (source, licence, image_size), None if nothing is.

    Raises:
        UnknownNetwork: for an unknown name.
    """
    from ml.networks import weights_sources

    summary = _family_of(name).summaries()[architecture(name)]
    with _without_memory(name):
        built: dict[int, Chain] = {}
        for image_size in (ABOUT_IMAGE_SIZE, 64, PUBLISHED_IMAGE_SIZE):
            with contextlib.suppress(UnknownNetwork):
                built[image_size] = build(name, 10, image_size).eval()
        if not built:
            raise UnknownNetwork(f"{name} reads neither 32, 64 nor 224 px")
        parameters = sum(math.prod(p.shape) for p in built[min(built)].parameters())
        costs = [
            {"image_size": image_size, **_cost(built[image_size], image_size)}
            for image_size in (ABOUT_IMAGE_SIZE, PUBLISHED_IMAGE_SIZE)
            if image_size in built
        ]
    return {
        "summary": summary,
        "parameters": parameters,
        "flops_per_image": costs[0]["flops"] if ABOUT_IMAGE_SIZE in built else None,
        "costs": costs,
        "min_image_size": min(built),
        "pretrained": weights_sources.offered(name),
    }


def required_shapes(name: str) -> dict[str, Shape | None]:
    """Names and shapes of what pretrained weights of a network must have, as `tensor_shapes.match` reads them.

    Args:
        name: One of `names()`.

    Raises:
        UnknownNetwork: for an unknown name.
    """
    with _without_memory(name):
        shapes = chain.required_shapes(build(name, 10, PUBLISHED_IMAGE_SIZE, published_stem=True))
    if positions := shapes.get(torchvision_zoo.POSITIONS):
        shapes[torchvision_zoo.POSITIONS] = (positions[0], tensor_shapes.ANY, positions[2])
    return shapes


@contextlib.contextmanager
def _without_memory(name: str) -> Iterator[None]:
    """Networks that are built have shapes and no values; `name` says which."""
    with torch.device("meta"), _WidthsOnCpu() if name.startswith("regnet") else contextlib.nullcontext():
        yield


def _cost(network: Chain, image_size: int) -> dict[str, int]:
    """`flops` of a forward pass of one image, and `activations`: the numbers that layers without children put out."""
    # Where Triton is missing, the module warns as it is imported that kernels of it are not counted: we have none.
    logging.getLogger("torch.utils.flop_counter").addFilter(_is_not_of_triton)
    from torch.utils.flop_counter import FlopCounterMode

    activations = 0

    def count(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal activations
        activations += output.numel() if isinstance(output, torch.Tensor) else 0

    layers = [module for module in network.modules() if next(module.children(), None) is None]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, image_size, image_size))
    for handle in handles:
        handle.remove()
    return {"flops": counter.get_total_flops(), "activations": activations}


def _is_not_of_triton(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("triton not found")


class _WidthsOnCpu(TorchFunctionMode):
    """Lists and ranges of numbers become tensors of the CPU where others have no data: RegNet computes its widths."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`; on the CPU if it is `torch.arange` or `torch.tensor`, for no particular device."""
        kwargs = kwargs or {}
        if func in (torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _families() -> list[Any]:  # modules: their two functions are a convention, checked by the tests of every name
    families = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in NOT_FAMILIES]
    families.sort(key=lambda family: (family == SLOW, family != "small", family))  # the small first, the slow last
    return [importlib.import_module(f"{__name__}.{family}") for family in families]


def _family_of(name: str) -> Any:
    if name.startswith(timm_zoo.PREFIX):
        return timm_zoo
    for family in _families():
        if architecture(name) in family.summaries():
            return family
    raise UnknownNetwork(f"no network is called {name!r}; known are {', '.join(names())}")


@torch.no_grad()
def _check_forward(network: Chain, image_size: int) -> None:
    """Run one image, as some architectures shrink a small one to nothing: fail now, not in a training's first step."""
    was_training = network.training
    device = next(network.parameters()).device
    network.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    network.train(was_training)
