"""Where the networks of a method look, seen from outside: their last feature maps and what each place says for a class.

It works for every method and every network whose last stage ends in feature maps: the networks are overheard while the
method answers, and neither knows of it. Nothing here learns, and nothing is asked of labels.

Shapes: `B` batch, `C` classes, `D` features, images `(B, 3, H, W)`, feature maps `(B, D, h, w)`, attention
`(B, 1, h, w)` in [0, 1]: 1 at each image's strongest place, coarse, row by row as the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.method import Method, Network

TINY = 1e-12
SCALES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the side: octaves, because objects come in all sizes and no one scale fits
SMOOTHEST = 16  # least side of a map that is smoothed


@dataclass
class Pass:
    """One forward pass of one network."""

    network: Network
    stages: list[Tensor] = field(default_factory=list)  # what the body and the members of the last stage gave, in order
    features: Tensor | None = None  # (B, D), what the classifier read

    @property
    def spatial(self) -> list[Tensor]:
        """What of `stages` are feature maps."""
        return [each for each in self.stages if each.dim() == 4 and each.shape[2] * each.shape[3] > 1]

    @property
    def maps(self) -> Tensor | None:
        """The last feature maps before they are pooled (B, D, h, w); None for networks of another build."""
        return self.spatial[-1] if self.spatial else None


@contextmanager
def overheard(method: Method) -> Iterator[list[Pass]]:
    """The passes of all of the method's networks while it answers, in the order they ended."""
    passes: list[Pass] = []
    handles = []
    for network in (each for each in method.modules() if isinstance(each, Network)):
        begun = Pass(network)

        def keep(module: nn.Module, _: object, found: object, begun: Pass = begun) -> None:
            if isinstance(found, Tensor):
                begun.stages.append(found)

        def end(module: nn.Module, given: tuple[Tensor, ...], begun: Pass = begun) -> None:
            passes.append(Pass(begun.network, list(begun.stages), given[0]))
            begun.stages.clear()

        members = (network.body, *network.last_stage.children())
        handles += [member.register_forward_hook(keep) for member in members]
        handles.append(network.classifier.register_forward_pre_hook(end))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def representation(method: Method, images: Tensor) -> Tensor:
    """What the method's answer is read from: the penultimate features of its networks side by side, (B, D)."""
    with overheard(method) as passes:
        method.logits(images)
    return torch.cat([each.features.float().flatten(1) for each in passes if each.features is not None], dim=1)


def class_activation(method: Method, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """CAM (Zhou et al. 2016) of `classes` int64 (B,), or of the answer, averaged over the networks.

    It needs no gradients, but a linear classifier on pooled maps; None where no network has one.
    """
    with overheard(method) as passes:
        logits = method.logits(images)
    chosen = logits.argmax(dim=1) if classes is None else classes
    found = []
    for each in passes:
        maps, classifier = each.maps, each.network.classifier
        if maps is not None and isinstance(classifier, nn.Linear) and classifier.in_features == maps.shape[1]:
            with torch.autocast(maps.device.type, enabled=False):
                found.append(torch.einsum("bd,bdhw->bhw", classifier.weight[chosen].float(), maps.float()))
    return _mean(found)


def grad_cam(method: Method, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017) of the last stage for `classes` int64 (B,), or for the answer.

    Feature maps weighted by the mean gradient of the class's logit. None where no network has feature maps.
    """
    with torch.enable_grad(), overheard(method) as passes:
        logits = method.logits(images.detach().requires_grad_())  # frozen networks have gradients too
        chosen = logits.detach().argmax(dim=1) if classes is None else classes
        maps = [each.maps for each in passes if each.maps is not None]
        total = logits.gather(1, chosen[:, None]).sum()
        gradients = torch.autograd.grad(total, maps, allow_unused=True) if maps else ()
    weighed = zip(maps, gradients, strict=True)
    return _mean([(m * g.mean(dim=(2, 3), keepdim=True)).sum(dim=1).detach() for m, g in weighed if g is not None])


def border_contrast(passes: Sequence[Pass]) -> Tensor | None:
    """How unlike the image's border each place is to the networks, (B, 1, h, w): where an object stands out from its
    surroundings, whatever its class.

    Of the feature maps before and behind the last stage, each feature's deviation from its mean on the border in units
    of its spread; smoothed by Gaussians of all `SCALES`, each as much worth. None where no network has feature maps.

    Passes are of one batch each; see `overheard`.
    """
    found = [_deviation(maps) for each in passes for maps in each.spatial[:1] + each.spatial[-1:]]
    if not found:
        return None
    height, width = max(tuple(each.shape[2:]) for each in found)
    size = (max(height, SMOOTHEST), max(width, SMOOTHEST))
    mean = torch.stack([functional.interpolate(each, size, mode="bilinear") for each in found]).mean(dim=0)
    return _peaked(_peaked(_smoothed(mean)).mean(dim=1, keepdim=True))


def _deviation(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, 1, h, w), each image's largest 1. Features are compared in f32."""
    maps = maps.float()
    height, width = maps.shape[2:]
    inner = torch.zeros(height, width, dtype=torch.bool, device=maps.device)
    inner[1:-1, 1:-1] = True
    flat = maps.flatten(2)
    border = flat[:, :, ~inner.flatten()]
    spread = border.std(dim=2, keepdim=True, correction=0) + 0.3 * flat.std(dim=2, keepdim=True, correction=0) + 1e-3
    square = ((flat - border.mean(dim=2, keepdim=True)) / spread).square().mean(dim=1)
    return _peaked(square.sqrt().view(-1, 1, height, width))


def _smoothed(maps: Tensor) -> Tensor:
    """(B, 1, h, w) -> (B, len(SCALES), h, w), by a Gaussian of each scale; nothing lies beyond the edges."""
    scales = maps.new_tensor(SCALES)
    maps = maps.expand(-1, len(scales), -1, -1)
    for axis in (2, 3):
        side = maps.shape[axis]
        reach = math.ceil(3 * max(SCALES) * side)
        steps = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernels = torch.exp(-((steps / (scales[:, None] * side)).square()) / 2)
        shape, padding = [len(scales), 1, 1, 1], [0, 0]
        shape[axis], padding[axis - 2] = len(steps), reach
        weights = (kernels / kernels.sum(dim=1, keepdim=True)).view(shape)
        maps = functional.conv2d(maps, weights, padding=padding, groups=len(scales))
    return maps


def _peaked(maps: Tensor) -> Tensor:
    """Each map's largest 1."""
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(TINY)


def _mean(found: list[Tensor]) -> Tensor | None:
    """Of maps (B, h, w), each first cut at 0 and brought to a maximum of 1; (B, 1, h, w)."""
    if not found:
        return None
    positive = [each.float().clamp_min(0) for each in found]
    scaled = [each / each.amax(dim=(1, 2), keepdim=True).clamp_min(TINY) for each in positive]
    mean = torch.stack(scaled).mean(dim=0)
    return _peaked(mean.unsqueeze(1))
