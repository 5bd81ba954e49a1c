"""The common structure of all networks: body, last stage and classifier, run one after the other.

So a method can reinitialise a part by its name, and a wrapper can change the input of the body.

Shapes: `B` batch, `C` classes, `D` features; images (B, 3, H, W).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ml import errors
from ml.formats import tensor_shapes
from ml.method import Network

SMALL_IMAGE = 64  # up to this side a network keeps full resolution in its stem; above it the ImageNet stem pays


class Chain(Network):
    """`classifier(last_stage(body(images)))`; the last stage ends with pooling and flattening."""

    body: nn.Module
    last_stage: nn.Module
    classifier: nn.Linear

    def __init__(self, body: nn.Module, last_stage: nn.Module, classifier: nn.Linear, image_size: int) -> None:
        """Join the parts.

        Args:
            body: images to feature maps.
            last_stage: feature maps to features (B, D).
            classifier: features to logits (B, C).
            image_size: H = W of the images in pixels.
        """
        super().__init__()
        self.body = body
        self.last_stage = last_stage
        self.classifier = classifier
        self.image_size = image_size
        self.published_names: dict[str, str] = {}  # names in `state_dict` -> those of the published architecture

    @property
    def class_count(self) -> int:
        return self.classifier.out_features

    @property
    def feature_count(self) -> int:  # type: ignore[override]  # follows the classifier, which a wrapper may widen
        return self.classifier.in_features

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        features: Tensor = self.last_stage(self.body(images))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def cut(network: Chain, tune: str) -> tuple[nn.Sequential, Chain]:
    """Divide a network into a part that stays frozen and a network of the rest that is trained.

    Args:
        network: Its modules become those of the two parts.
        tune: What is trained: "none", the classifier alone; "last", the last stage too; "two", also the last module of
            the body that has weights; "all", everything.

    Returns:
        The frozen part, empty for "all", and the network of the rest.

    Raises:
        ValueError: The network cannot be divided there.
    """
    body, last_stage = _members(network.body), _members(network.last_stage)
    boundary = {"none": len(body) + len(last_stage), "last": len(body), "two": _last_with_weights(body), "all": 0}[tune]
    if tune in ("last", "two") and not any(True for _ in network.last_stage.parameters()):
        raise ValueError("this network cannot be divided: tune none or all")
    if tune == "two" and boundary == 0:
        raise ValueError("the body of this network has one part only: tune none, last or all")
    frozen = [*body, *last_stage][:boundary]
    trained = Chain(
        nn.Sequential(*body[boundary:]),
        nn.Sequential(*last_stage[max(0, boundary - len(body)) :]),
        network.classifier,
        network.image_size,
    )
    return nn.Sequential(*frozen), trained


def frozen_depth(tune: str) -> str:
    """Where `cut` ends the part that stands before a method's input: at `tune`.

    A network that is trained whole has no such part; all but its classifier then locates objects.
    """
    return "none" if tune == "all" else tune


def fix_statistics(network: nn.Module) -> None:
    """Let every layer of batch normalisation use its running statistics in training too; no batch changes them then.

    Scales and offsets are trained as before. It holds for the layers, wherever they are moved or copied.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_set_evaluating)


def _set_evaluating(module: nn.Module, _: object) -> None:
    module.training = False


def _members(part: nn.Module) -> list[nn.Module]:
    return list(part.children()) if isinstance(part, nn.Sequential) else [part]


def _last_with_weights(modules: list[nn.Module]) -> int:
    """The position of the last module that has a matrix or a kernel; 0 if none has."""
    with_weights = [i for i, module in enumerate(modules) if any(p.dim() > 1 for p in module.parameters())]
    return max(with_weights, default=0)


def names_of(module: nn.Module) -> dict[int, str]:
    """Names in a module's state by the identity of its tensors, to find them in a module that shares the tensors."""
    return {id(tensor): name for name, tensor in module.state_dict(keep_vars=True).items()}


def set_published_names(network: Chain, published: dict[int, str]) -> Chain:
    """Set `network.published_names` from the names by identity of tensor (`names_of`); returns the network."""
    own = network.state_dict(keep_vars=True)
    network.published_names = {name: published[id(tensor)] for name, tensor in own.items() if id(tensor) in published}
    return network


def named_sequence(**modules: nn.Module) -> nn.Sequential:
    """A sequence whose members keep the names that published weights use."""
    return nn.Sequential(OrderedDict(modules))


def pooling_layers() -> dict[str, nn.Module]:
    """The end of a last stage: (B, D, H, W) -> (B, D)."""
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}


def keeps_resolution(image_size: int, published_stem: bool = False) -> bool:
    """Whether the stem keeps the resolution of images of this side: of small ones, unless it must be the published one.

    Features of pretrained weights mean little behind a stem with another stride.
    """
    return image_size <= SMALL_IMAGE and not published_stem


def initialise(module: nn.Module) -> None:
    """He et al. 2015, fan-out, for every convolution; networks of papers on noisy labels have PyTorch's default."""
    for member in module.modules():
        if isinstance(member, nn.Conv2d):
            nn.init.kaiming_normal_(member.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():  # an output of a depthwise convolution has a fan-out of one channel
                member.weight.mul_(member.groups**0.5)


def widen_stem(network: nn.Module, channels: int) -> None:
    """Replace the first convolution's weights so that it reads more channels: copies, divided by their number.

    Args:
        network: is changed in place.
        channels: a multiple of the input channels that it has.

    Raises:
        ValueError: if the network has no convolution.
    """
    for _, stem in network.named_modules():
        if isinstance(stem, nn.Conv2d):
            break
    else:
        raise ValueError(f"{type(network).__name__} has no convolution whose input could be widened")
    copies = channels // stem.in_channels
    with torch.no_grad():
        stem.weight = nn.Parameter(stem.weight.repeat(1, copies, 1, 1) / copies)
    stem.in_channels = channels


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; no other format is read, since unpickling runs code.

    Raises:
        errors.MissingWeights: if the file is missing or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:  # reads the header alone: a bad file fails before a big read
            file.keys()
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise errors.MissingWeights(
            f"{path.name} is not a readable safetensors file", code="unreadable_weights"
        ) from error


def required_shapes(network: Chain) -> dict[str, tensor_shapes.Shape | None]:
    """What pretrained weights must have, by published names: all but the classifier and the counters of batches."""
    return {
        network.published_names.get(name, name): None
        if name.startswith("classifier.") or name.endswith("num_batches_tracked")
        else tuple(tensor.shape)
        for name, tensor in network.state_dict().items()
    }


def load_pretrained(network: Chain, weights: Mapping[str, Tensor]) -> None:
    """Load pretrained weights in place; kernels that are larger than the network's are cropped to their centre.

    Args:
        network: the classifier keeps its own weights where their shape differs or they are missing.
        weights: tensors by published names (`network.published_names`) or the network's own; others are ignored.

    Raises:
        errors.MissingWeights: if anything but the classifier is missing or has another shape.
    """
    try:
        names = tensor_shapes.match(
            required_shapes(network), {name: tuple(tensor.shape) for name, tensor in weights.items()}
        )
    except tensor_shapes.UnfittingWeights as error:
        raise errors.MissingWeights(f"the pretrained weights do not fit: {error}", code="unfitting_weights") from error
    own = network.state_dict()
    for name, tensor in own.items():
        weight = weights.get(names.get(network.published_names.get(name, name), name))
        if weight is not None and (fitted := _centre(weight, tensor)).shape == tensor.shape:
            own[name] = fitted  # in place: it also holds the versions of modules
    network.load_state_dict(own)


def _centre(weight: Tensor, own: Tensor) -> Tensor:
    """The middle of a kernel, of the size of the network's own; any other tensor as it is."""
    if weight.ndim != 4 or own.ndim != 4 or (margin := (weight.shape[-1] - own.shape[-1]) // 2) <= 0:
        return weight
    side = own.shape[-1]
    return weight[:, :, margin : margin + side, margin : margin + side]
