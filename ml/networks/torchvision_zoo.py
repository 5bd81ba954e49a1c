"""Any torchvision classification network by its torchvision name, cut into the three named parts.

The classifier becomes one linear layer. VGG, AlexNet and SqueezeNet get global average pooling in place of their own
heads, whose 4096-wide layers would hold most of the weights. Up to 64 px, stems that would leave nothing of a small
image keep full resolution, unless the network starts from pretrained weights. torchvision takes seconds to import, so
it is imported when one of its networks is used.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ml import errors
from ml.networks import chain

POSITIONS = "encoder.pos_embedding"  # of a vision transformer: (1, patches + 1, D)
REPLACED_HEADS = ("vgg", "alexnet", "squeezenet")  # global average pooling and one linear layer instead
NOT_OFFERED = {"resnet18", "resnet34", "regnet_y_128gf"}  # ours, in resnet.py; and one of 640 million parameters


class ChannelsLast(nn.Module):
    """(B, H, W, D) -> (B, D, H, W): Swin computes with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class Tokens(nn.Module):
    """A vision transformer up to its last encoder block: patches, class token, positions, blocks."""

    def __init__(self, vit: Any) -> None:  # torchvision's VisionTransformer, whose members are typed as Tensor | Module
        super().__init__()
        self.patches = vit.conv_proj
        self.class_token = vit.class_token
        self.positions = vit.encoder.pos_embedding
        self.dropout = vit.encoder.dropout
        self.blocks = nn.Sequential(*list(vit.encoder.layers)[:-1])

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (B, patches, D)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        blocks: Tensor = self.blocks(self.dropout(tokens + self.positions))
        return blocks


class ClassToken(nn.Module):
    """(B, 1 + patches, D) -> (B, D)."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]


def summaries() -> dict[str, str]:
    """One sentence about each network of the family, by name."""
    from torchvision import models  # type: ignore[import-untyped]

    return {
        name: f"torchvision's {name}, head replaced by one linear layer."
        for name in models.list_models(module=models)
        if name not in NOT_OFFERED
    }


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`."""
    from torchvision import models

    family = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    model: Any = models.get_model(name, weights=None, **_options(name, image_size))
    if chain.keeps_resolution(image_size, published_stem):
        _keep_resolution(model, family)
    published, head = chain.names_of(model), _head(model)
    body, last_stage, width = family(model)
    network = chain.Chain(nn.Sequential(*body), nn.Sequential(*last_stage), nn.Linear(width, classes), image_size)
    if name.startswith(REPLACED_HEADS):
        head = "classifier.2" if name.startswith("squeezenet") else "classifier"
    published |= {id(network.classifier.weight): f"{head}.weight", id(network.classifier.bias): f"{head}.bias"}
    chain.set_published_names(network, published)
    if pretrained is not None:
        weights = chain.read_weights(pretrained)
        chain.load_pretrained(network, _resampled(weights, model, image_size) if family is _vit else weights)
    return network


def _resampled(weights: dict[str, Tensor], vit: Any, image_size: int) -> dict[str, Tensor]:
    """The weights of a vision transformer, with the positions of a grid of patches of images of this size."""
    from torchvision import models

    positions = weights.get(POSITIONS)
    if positions is None or positions.ndim != 3:
        return weights
    try:
        return dict(models.vision_transformer.interpolate_embeddings(image_size, vit.patch_size, weights))
    except ValueError as error:  # their number is no square, or there is more than one set of them
        raise errors.MissingWeights(f"{POSITIONS} cannot be resampled: {error}", code="unfitting_weights") from error


def build_plain(name: str, classes: int, image_size: int, published_stem: bool) -> tuple[nn.Module, list[str]]:
    """The network as torchvision's own class, whose state has the `published_names` of the one that `build` returns.

    Args:
        name: Of a network of torchvision; also of those that it builds and we do too (`resnet.py`).
        classes: C.
        image_size: Side in pixels.
        published_stem: As of `ml.networks.build`.

    Returns:
        The network, and the lines of Python that make it as `model`.
    """
    from torchvision import models

    family = next(family for prefix, family in FAMILIES.items() if name.startswith(prefix))
    options = {"num_classes": classes, **_options(name, image_size)}
    model: Any = models.get_model(name, weights=None, **options)
    before = {path: repr(module) for path, module in model.named_modules()}
    if chain.keeps_resolution(image_size, published_stem):
        _keep_resolution(model, family)
    if name.startswith(REPLACED_HEADS):
        width = family(model)[2]
        if name.startswith("squeezenet"):
            head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes), nn.Identity())
            model.classifier = nn.Sequential(*head)
        else:
            model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(width, classes)
    arguments = ", ".join(f"{option}={value!r}" for option, value in options.items())
    lines = ["import torchvision", f"model = torchvision.models.{name}({arguments})"]
    for path, module in model.named_modules():
        if not any(True for _ in module.children()) and repr(module) != before.get(path):
            place = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in path.split("."))
            lines.append(f"model{place} = torch.nn.{module!r}")
    return model, lines


def _options(name: str, image_size: int) -> dict[str, Any]:
    if name.startswith("vit"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    if name.startswith(("googlenet", "inception")):
        return {"aux_logits": False, "init_weights": False}
    return {}


Parts = tuple[list[nn.Module], list[nn.Module], int]  # body, last stage, features


def _trunk_and_pool(model: Any) -> Parts:
    """A trunk, global average pooling, a linear classifier: VGG, AlexNet, SqueezeNet, MobileNetV2, EfficientNet."""
    *body, last = list(model.features)
    rest = [last] if any(p.requires_grad for p in last.parameters()) else [body.pop(), last]
    convolutions = [m for m in model.features.modules() if isinstance(m, nn.Conv2d)]
    width = 512 if type(model).__name__ == "SqueezeNet" else convolutions[-1].out_channels
    return body, [*rest, nn.AdaptiveAvgPool2d(1), nn.Flatten()], width


def _trunk_and_head(model: Any) -> Parts:
    """A trunk and a head of several layers, of which all but the classifier stay: ConvNeXt, MobileNetV3."""
    *body, last = list(model.features)
    *head, classifier = list(model.classifier)
    between = [] if any(isinstance(m, nn.Flatten) for m in head) else [nn.Flatten()]
    return body, [last, model.avgpool, *between, *head], classifier.in_features


def _children(model: Any) -> Parts:
    """Modules in a row, `fc` the last: ResNet, ResNeXt, ShuffleNet, RegNet, GoogLeNet, Inception, MNASNet."""
    unused = ("avgpool", "dropout", "fc", "aux1", "aux2", "AuxLogits")
    members = [m for n, m in model.named_children() if n not in unused]
    return members[:-1], [members[-1], nn.AdaptiveAvgPool2d(1), nn.Flatten()], model.fc.in_features


def _densenet(model: Any) -> Parts:
    *body, block, norm = list(model.features)
    return body, [block, norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], model.classifier.in_features


def _mnasnet(model: Any) -> Parts:
    layers = list(model.layers)
    return layers[:-4], [*layers[-4:], nn.AdaptiveAvgPool2d(1), nn.Flatten()], model.classifier[-1].in_features


def _swin(model: Any) -> Parts:
    """Its modules compute with channels last; between them, and so in a chain, maps have channels first."""
    *body, last = list(model.features)
    for module in (*body[1:], last):
        module.register_forward_pre_hook(_channels_last)
    for module in body:
        module.register_forward_hook(_channels_first)
    rest = [last, model.norm, ChannelsLast(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return body, rest, model.head.in_features


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return inputs[0].permute(0, 2, 3, 1)


def _channels_first(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.permute(0, 3, 1, 2)


def _vit(model: Any) -> Parts:
    return [Tokens(model)], [model.encoder.layers[-1], model.encoder.ln, ClassToken()], model.hidden_dim


def _maxvit(model: Any) -> Parts:
    *body, last = list(model.blocks)
    *head, classifier = list(model.classifier)
    return [model.stem, *body], [last, *head], classifier.in_features


FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "alexnet": _trunk_and_pool,
    "convnext": _trunk_and_head,
    "densenet": _densenet,
    "efficientnet": _trunk_and_pool,
    "maxvit": _maxvit,
    "mnasnet": _mnasnet,
    "mobilenet_v2": _trunk_and_pool,
    "mobilenet_v3": _trunk_and_head,
    "squeezenet": _trunk_and_pool,
    "swin": _swin,
    "vgg": _trunk_and_pool,
    "vit": _vit,
    "": _children,
}


def _head(model: nn.Module) -> str:
    """The name of the classifier: the last linear layer, or SqueezeNet's last convolution."""
    candidates: list[str] = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or n == "classifier.1"]
    return candidates[-1]


def _keep_resolution(model: Any, family: Callable[[Any], Parts]) -> None:
    """CIFAR stems: the first convolution at stride 1, and no max-pool after it, where the architecture has them."""
    if family is _densenet:
        model.features.conv0, model.features.pool0 = _unstrided(model.features.conv0), nn.Identity()
    elif family is _children and hasattr(model, "maxpool"):
        model.maxpool = nn.Identity()
        if isinstance(model.conv1, nn.Conv2d):
            model.conv1 = _unstrided(model.conv1)
        else:  # ShuffleNet wraps convolution, BN and ReLU
            model.conv1[0] = _unstrided(model.conv1[0])
    elif family is _children and hasattr(model, "stem"):  # RegNet
        model.stem[0] = _unstrided(model.stem[0])
    elif family in (_trunk_and_pool, _trunk_and_head) and isinstance(model.features[0], nn.Sequential):
        stem: Any = model.features[0][0]  # MobileNet, EfficientNet; ConvNeXt reads patches of 2 instead of 4
        model.features[0][0] = _patches_of_two(stem) if stem.stride == (4, 4) else _unstrided(stem)


def _unstrided(stem: nn.Conv2d) -> nn.Conv2d:
    convolution = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=stem.bias is not None)
    return _take_centre(convolution, stem)


def _patches_of_two(stem: nn.Conv2d) -> nn.Conv2d:
    return _take_centre(nn.Conv2d(stem.in_channels, stem.out_channels, 2, stride=2), stem)


@torch.no_grad()
def _take_centre(convolution: nn.Conv2d, stem: nn.Conv2d) -> nn.Conv2d:
    side = convolution.kernel_size[0]
    margin = (stem.kernel_size[0] - side) // 2
    convolution.weight.copy_(stem.weight[:, :, margin : margin + side, margin : margin + side])
    if convolution.bias is not None and stem.bias is not None:
        convolution.bias.copy_(stem.bias)
    return convolution
