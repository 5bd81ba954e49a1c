"""ResNet-18 and ResNet-34 (He et al., CVPR 2016), post-activation, with the stem the image size asks for.

Up to 64 px the stem is that for CIFAR (3x3, stride 1, no max-pool); above it, and with pretrained weights, that for
ImageNet (7x7, stride 2, max-pool). Modules have the names of published ImageNet weights, so that such a file can be
loaded. Initial weights are PyTorch's default, as in the papers on noisy labels; those of He et al. gave lower accuracy
in a small study (docs/log.md).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ml.networks import chain

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """conv-BN-ReLU-conv-BN plus the shortcut, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu(out + shortcut)
        return activated


def summaries() -> dict[str, str]:
    """One sentence about each network of the family, by name."""
    return {
        "resnet18": "ResNet-18: the usual network for CIFAR-10 with noisy labels.",
        "resnet34": "ResNet-34: the usual network for CIFAR-100 and CIFAR-N.",
    }


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`."""
    stages = [_stage(i, count) for i, count in enumerate(BLOCKS[name])]
    body = chain.named_sequence(
        **_stem(chain.keeps_resolution(image_size, published_stem)),
        layer1=stages[0],
        layer2=stages[1],
        layer3=stages[2],
    )
    last_stage = chain.named_sequence(layer4=stages[3], **chain.pooling_layers())
    network = chain.Chain(body, last_stage, nn.Linear(WIDTHS[-1], classes), image_size)
    network.published_names = {own: _published_name(own) for own in network.state_dict()}
    if pretrained is not None:
        chain.load_pretrained(network, chain.read_weights(pretrained))
    return network


def _stem(small: bool) -> dict[str, nn.Module]:
    kernel, stride = (3, 1) if small else (7, 2)
    convolution = nn.Conv2d(3, WIDTHS[0], kernel, stride=stride, padding=kernel // 2, bias=False)
    stem: dict[str, nn.Module] = {"conv1": convolution, "bn1": nn.BatchNorm2d(WIDTHS[0]), "relu": nn.ReLU(inplace=True)}
    return stem if small else stem | {"maxpool": nn.MaxPool2d(3, stride=2, padding=1)}


def _stage(index: int, blocks: int) -> nn.Sequential:
    inputs, outputs = WIDTHS[max(index - 1, 0)], WIDTHS[index]
    first = Block(inputs, outputs, stride=1 if index == 0 else 2)
    return nn.Sequential(first, *(Block(outputs, outputs, stride=1) for _ in range(blocks - 1)))


def _published_name(name: str) -> str:
    part, rest = name.split(".", 1)
    return f"fc.{rest}" if part == "classifier" else rest
