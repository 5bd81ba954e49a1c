"""EfficientNet-Lite0 (Google, 2020): the smallest EfficientNet, without squeeze-and-excitation and with ReLU6.

It repeats TensorFlow's arithmetic, with which the published weights were trained: at stride 2, padding that is larger
at the right and at the bottom, and an epsilon of 1e-3 in the batch normalisation. Weights have the names of timm's
`tf_efficientnet_lite0`; files of other implementations hold the same tensors in the same order (`rename`).

Shapes: `B` batch, `C` classes, `D` features, `H`, `W` height and width of a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from ml.networks import chain

EPSILON = 1e-3  # of the batch normalisation
STEM, HEAD = 32, 1280  # channels
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LAST = len(STAGES)
# Names of the parts that are not stages: ours, and those of published weights.
PUBLISHED = {
    "body.stem.conv.": "conv_stem.",
    "body.stem.bn.": "bn1.",
    "last_stage.head.conv.": "conv_head.",
    "last_stage.head.bn.": "bn2.",
}


class SameConv2d(nn.Conv2d):
    """A convolution of stride 2 whose output has ceil(H / 2) rows and ceil(W / 2) columns, padded as in TensorFlow."""

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._padding(x.shape[axis], axis - 2) for axis in (2, 3))
        return super().forward(F.pad(x, (left, right, top, bottom)))

    def _padding(self, side: int, axis: int) -> tuple[int, int]:
        """Zeros before and after `side` pixels."""
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return total // 2, total - total // 2


class DepthwiseBlock(nn.Module):
    """Depthwise convolution and projection: the block of stage 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _convolution(inputs, inputs, kernel, stride, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs, eps=EPSILON)
        self.conv_pw = _convolution(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv_pw(self.relu(self.bn1(self.conv_dw(x)))))
        return out + x if self.adds_input else out


class InvertedBlock(nn.Module):
    """Expansion, depthwise convolution and projection: the block of every other stage."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.conv_pw = _convolution(inputs, inner)
        self.bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.conv_dw = _convolution(inner, inner, kernel, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner, eps=EPSILON)
        self.conv_pwl = _convolution(inner, outputs)
        self.bn3 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self.relu = nn.ReLU6(inplace=True)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        expanded = self.relu(self.bn1(self.conv_pw(x)))
        out: Tensor = self.bn3(self.conv_pwl(self.relu(self.bn2(self.conv_dw(expanded)))))
        return out + x if self.adds_input else out


def summaries() -> dict[str, str]:
    """One sentence about each network of the family, by name."""
    return {
        "efficientnet_lite0": "EfficientNet-Lite0: the backbone for photographs, quick on a CPU, with ImageNet weights."
    }


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`. The body is a sequence of the stem and stages 1 to 6."""
    stem_stride = 1 if chain.keeps_resolution(image_size, published_stem) else 2
    stages = {f"stage{number}": _stage(number) for number in range(1, LAST + 1)}
    last = stages.pop(f"stage{LAST}")
    body = chain.named_sequence(stem=_layer(3, STEM, 3, stem_stride), **stages)
    last_stage = chain.named_sequence(
        **{f"stage{LAST}": last}, head=_layer(STAGES[-1][-1], HEAD, 1, 1), **chain.pooling_layers()
    )
    network = chain.Chain(body, last_stage, nn.Linear(HEAD, classes), image_size)
    chain.initialise(network)
    network.published_names = {own: published_name(own) for own in network.state_dict()}
    if pretrained is not None:
        chain.load_pretrained(network, chain.read_weights(pretrained))
    return network


def published_name(name: str) -> str:
    """The name that published weights give to the tensor `name` of a network that `build` returned."""
    for own, published in PUBLISHED.items():
        if name.startswith(own):
            return name.replace(own, published)
    if "stage" not in name:  # the classifier
        return name
    stage, _, rest = name.split(".", 1)[1].removeprefix("stage").partition(".")
    return f"blocks.{int(stage) - 1}.{rest}"


def rename(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of timm's.

    Args:
        weights: Those of any implementation, in the order in which the network computes; where the number of tensors or
            a shape differs, they are returned as they are.
    """
    own = build("efficientnet_lite0", 1000, 224, None, published_stem=True).state_dict()
    same = len(own) == len(weights) and all(
        ours.shape == theirs.shape or ours.ndim == 2
        for ours, theirs in zip(own.values(), weights.values(), strict=True)
    )
    if not same or "conv_stem.weight" in weights:
        return dict(weights)
    return {published_name(name): tensor for name, tensor in zip(own, weights.values(), strict=True)}


def _stage(number: int) -> nn.Sequential:
    blocks, kernel, stride, expansion, outputs = STAGES[number - 1]
    inputs = STEM if number == 1 else STAGES[number - 2][-1]
    if expansion == 1:
        return nn.Sequential(DepthwiseBlock(inputs, outputs, kernel, stride))
    first = InvertedBlock(inputs, outputs, kernel, stride, expansion)
    return nn.Sequential(first, *(InvertedBlock(outputs, outputs, kernel, 1, expansion) for _ in range(blocks - 1)))


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return chain.named_sequence(
        conv=_convolution(inputs, outputs, kernel, stride),
        bn=nn.BatchNorm2d(outputs, eps=EPSILON),
        relu=nn.ReLU6(inplace=True),
    )


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:
        return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
