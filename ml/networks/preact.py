"""PreAct ResNet-18 (He et al., ECCV 2016) as the noisy-label literature uses it.

As in the released code of DivideMix, ELR+, PES and SOP, conv1 is followed by BN and ReLU, there is no final BN before
pooling, and every shortcut, an identity too, starts behind the block's first BN and ReLU. In He et al. an identity
starts at the block's input. Initial weights are PyTorch's default, as in that code.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ml.networks import chain

WIDTHS = (64, 128, 256, 512)


class Block(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus the shortcut from behind the first ReLU.

    Attributes:
        identity_from_input: Start an identity at the block's input, see `use_identities_from_input`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.identity_from_input = False
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        identity = x if self.identity_from_input else active
        shortcut = identity if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(active)))) + shortcut
        return out


def summaries() -> dict[str, str]:
    """One sentence about each network of the family, by name."""
    return {"preact_resnet18": "PreAct ResNet-18: the network of DivideMix, ELR+, PES (semi) and SOP+."}


def build(name: str, classes: int, image_size: int, pretrained: Path | None, published_stem: bool) -> chain.Chain:
    """See `ml.networks.build`; nobody publishes its weights, so the stem follows the size of the images alone."""
    small = chain.keeps_resolution(image_size)
    stages = [_stage(i) for i in range(4)]
    stem: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, 64, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(inplace=True),
    }
    if not small:
        stem["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    body = chain.named_sequence(**stem, layer1=stages[0], layer2=stages[1], layer3=stages[2])
    last_stage = chain.named_sequence(layer4=stages[3], **chain.pooling_layers())
    network = chain.Chain(body, last_stage, nn.Linear(WIDTHS[-1], classes), image_size)
    if pretrained is not None:
        chain.load_pretrained(network, chain.read_weights(pretrained))
    return network


def use_identities_from_input(network: nn.Module) -> None:
    """Give all blocks of `network` the identities of He et al., with which models of archive format 1 were trained."""
    for block in network.modules():
        if isinstance(block, Block):
            block.identity_from_input = True


def _stage(index: int) -> nn.Sequential:
    inputs, outputs = WIDTHS[max(index - 1, 0)], WIDTHS[index]
    return nn.Sequential(Block(inputs, outputs, 1 if index == 0 else 2), Block(outputs, outputs, 1))
