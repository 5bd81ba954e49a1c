"""Where a method's networks look: their last feature maps, class activation maps, and contrast to the border.

It works for every method and every network whose last stage ends in feature maps. Forward hooks record what the
networks compute while the method predicts; methods and networks need not know. Nothing is learned here.

Shapes: `B` batch, `C` classes, `D` features, images (B, 3, H, W) normalised, feature maps (B, D, h, w). Attention is
f32 (B, 1, h, w) in [0, 1], 1 at each image's largest value, row by row like the image and coarser.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from ml.method import Method, Network

TINY = 1e-12
SCALES = (1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of smoothing, as shares of the side: octaves, as objects have all sizes
LEAST_SIDE = 20  # maps are enlarged to at least this side before they are smoothed
TRUSTED_CORRELATION = 0.6  # mean over pictures of class activation with border contrast: a model's masks are products
AGREEING = 0.5  # the same of one picture, whose mask is then the product
FLAT_BORDER = 0.3  # share of the whole map's deviation that is added to the border's, which may be almost 0


@dataclass
class NetworkActivations:
    """What one forward pass of one network computed."""

    network: Network
    stages: list[Tensor] = field(default_factory=list)  # outputs of the body and the last stage's modules, in order
    features: Tensor | None = None  # (B, D), input of the classifier

    @property
    def spatial(self) -> list[Tensor]:
        """Those outputs of `stages` that are feature maps."""
        return [output for output in self.stages if output.dim() == 4 and output.shape[2] * output.shape[3] > 1]

    @property
    def maps(self) -> Tensor | None:
        """The last feature maps (B, D, h, w), before they are pooled; None where the network has none."""
        return self.spatial[-1] if self.spatial else None


@contextmanager
def record_activations(method: Method) -> Iterator[list[NetworkActivations]]:
    """Record every forward pass of the method's networks in this thread inside the `with` block.

    Yields:
        A list that grows by one entry per forward pass, in the order in which they reach their classifier.
    """
    passes: list[NetworkActivations] = []
    handles = []
    thread = threading.get_ident()
    for network in (module for module in method.modules() if isinstance(module, Network)):
        current = NetworkActivations(network)

        def add_stage(module: nn.Module, _: object, output: object, current: NetworkActivations = current) -> None:
            if isinstance(output, Tensor) and threading.get_ident() == thread:
                current.stages.append(output)

        def end_pass(module: nn.Module, inputs: tuple[Tensor, ...], current: NetworkActivations = current) -> None:
            if threading.get_ident() == thread:
                passes.append(NetworkActivations(current.network, list(current.stages), inputs[0]))
                current.stages.clear()

        stages = (network.body, *network.last_stage.children())
        handles += [stage.register_forward_hook(add_stage) for stage in stages]
        handles.append(network.classifier.register_forward_pre_hook(end_pass))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def representation(method: Method, images: Tensor) -> Tensor:
    """f32 (B, D): the penultimate features of all networks that a prediction uses, side by side."""
    with record_activations(method) as passes:
        method.logits(images)
    return torch.cat([one.features.float().flatten(1) for one in passes if one.features is not None], dim=1)


def class_activation(method: Method, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """Class activation maps (CAM, Zhou et al. 2016), averaged over the networks. Needs no gradients.

    Args:
        method: In eval mode.
        images: (B, 3, H, W).
        classes: int64 (B,), whose maps are computed; by default the predicted ones.

    Returns:
        Attention (B, 1, h, w), or None where no network has a linear classifier on pooled feature maps.
    """
    with record_activations(method) as passes:
        logits = method.logits(images)
    targets = logits.argmax(dim=1) if classes is None else classes
    maps = []
    for one in passes:
        features, classifier = one.maps, one.network.classifier
        if features is not None and isinstance(classifier, nn.Linear) and classifier.in_features == features.shape[1]:
            with torch.autocast(features.device.type, enabled=False):
                maps.append(torch.einsum("bd,bdhw->bhw", classifier.weight[targets].float(), features.float()))
    return _mean_attention(maps)


def grad_cam(method: Method, images: Tensor, classes: Tensor | None = None) -> Tensor | None:
    """Grad-CAM (Selvaraju et al. 2017) of the last stage: feature maps weighted by their mean gradient.

    Args:
        method: In eval mode; frozen networks are fine, since gradients flow from the images.
        images: (B, 3, H, W).
        classes: int64 (B,), whose logits are differentiated; by default the predicted ones.

    Returns:
        Attention (B, 1, h, w), averaged over the networks, or None where no network has feature maps.
    """
    with torch.enable_grad(), record_activations(method) as passes:
        logits = method.logits(images.detach().requires_grad_())
        targets = logits.detach().argmax(dim=1) if classes is None else classes
        maps = [one.maps for one in passes if one.maps is not None]
        total = logits.gather(1, targets[:, None]).sum()
        gradients = torch.autograd.grad(total, maps, allow_unused=True) if maps else ()
    pairs = zip(maps, gradients, strict=True)
    return _mean_attention(
        [(m * g.mean(dim=(2, 3), keepdim=True)).sum(dim=1).detach() for m, g in pairs if g is not None]
    )


def border_contrast(passes: Sequence[NetworkActivations]) -> Tensor | None:
    """How much each place's features differ from those on the image's border: where an object of any class stands out.

    Feature maps before and after the last stage are compared, by `contrast_to_border`.

    Args:
        passes: Of one batch, as `record_activations` yields them.

    Returns:
        Attention (B, 1, h, w), or None where no network has feature maps.
    """
    maps = [one_maps for one in passes for one_maps in one.spatial[:1] + one.spatial[-1:]]
    return contrast_to_border(maps) if maps else None


def contrast_to_border(maps: Sequence[Tensor], scales: Sequence[float] = SCALES) -> Tensor:
    """Border contrast of feature maps: each feature's deviation from its mean on the border, in units of its deviation
    there. The maps are averaged, smoothed by Gaussians of all scales, and averaged again.

    Args:
        maps: One or more feature maps (B, D, h, w) of the same images; D, h and w may differ, h and w are at least 3.
        scales: Standard deviations of the Gaussians, as shares of the side.

    Returns:
        Attention f32 (B, 1, h', w'); h' and w' are those of the largest maps, and at least `LEAST_SIDE`.
    """
    deviations = [_deviation(one) for one in maps]
    height, width = max(tuple(deviation.shape[2:]) for deviation in deviations)
    size = (max(height, LEAST_SIDE), max(width, LEAST_SIDE))
    mean = torch.stack([functional.interpolate(one, size, mode="bilinear") for one in deviations]).mean(dim=0)
    return _scale_to_one(_scale_to_one(_smooth(mean, scales)).mean(dim=1, keepdim=True))


def activation_of(maps: Tensor, class_weights: Tensor) -> Tensor:
    """Class activation of feature maps, smoothed by a Gaussian of 1/16 of the side, as a factor of a mask.

    Args:
        maps: (B, D, h, w), of the last stage.
        class_weights: the classifier's weights of each image's class, less their mean over classes, (B, D).

    Returns:
        Attention f32 (B, 1, h', w'), 0 at each image's smallest value; sides are at least `LEAST_SIDE`.
    """
    raw = torch.einsum("bd,bdhw->bhw", class_weights.float(), maps.float()).unsqueeze(1)
    raw = raw - raw.amin(dim=(2, 3), keepdim=True)
    size = (max(maps.shape[2], LEAST_SIDE), max(maps.shape[3], LEAST_SIDE))
    return _scale_to_one(_smooth(functional.interpolate(raw, size, mode="bilinear"), (1 / 16,)))


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Correlation over the pixels of each image's two maps, (B, 1, h, w) of the same sides: (B,) in [-1, 1].

    It says whether a class is recognised by what stands out. Where it is, as on photographs of things, their product
    points better than either; where it is not, as on textures or on classes that the network does not know, the border
    contrast alone does (docs/log.md).
    """
    a, b = ((maps.flatten(1) - maps.flatten(1).mean(dim=1, keepdim=True)) for maps in (one, other))
    cosine: Tensor = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(TINY)
    return cosine


def product_where_agreeing(contrast: Tensor, activation: Tensor) -> Tensor:
    """The product of two maps (B, 1, h, w) where they correlate, elsewhere the first; each image's largest value 1."""
    agree = agreeing(contrast, activation)[:, None, None, None]
    return _scale_to_one(torch.where(agree, contrast * activation, contrast))


def agreeing(contrast: Tensor, activation: Tensor) -> Tensor:
    """Whether two maps (B, 1, h, w) of each image correlate, bool (B,)."""
    return correlation(contrast, activation) >= AGREEING


def _deviation(maps: Tensor) -> Tensor:
    """(B, D, h, w) -> (B, 1, h, w) in f32, each image's largest value 1."""
    maps = maps.float()
    height, width = maps.shape[2:]
    inner = torch.zeros(height, width, dtype=torch.bool, device=maps.device)
    inner[1:-1, 1:-1] = True
    flat = maps.flatten(2)
    border = flat[:, :, ~inner.flatten()]
    spread = (
        border.std(dim=2, keepdim=True, correction=0) + FLAT_BORDER * flat.std(dim=2, keepdim=True, correction=0) + 1e-3
    )
    square = ((flat - border.mean(dim=2, keepdim=True)) / spread).square().mean(dim=1)
    return _scale_to_one(square.sqrt().view(-1, 1, height, width))


def _smooth(maps: Tensor, scales: Sequence[float]) -> Tensor:
    """(B, 1, h, w) -> (B, len(scales), h, w), by a Gaussian of each scale; nothing lies beyond the edges."""
    maps = maps.expand(-1, len(scales), -1, -1)
    sigmas = maps.new_tensor(scales)[:, None]
    for axis in (2, 3):
        side = maps.shape[axis]
        reach = math.ceil(3 * max(scales) * side)
        steps = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
        kernels = torch.exp(-((steps / (sigmas * side)).square()) / 2)
        shape, padding = [len(scales), 1, 1, 1], [0, 0]
        shape[axis], padding[axis - 2] = len(steps), reach
        weights = (kernels / kernels.sum(dim=1, keepdim=True)).view(shape)
        maps = functional.conv2d(maps, weights, padding=padding, groups=len(scales))
    return maps


def _scale_to_one(maps: Tensor) -> Tensor:
    """Each map's largest value becomes 1."""
    return maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(TINY)


def _mean_attention(maps: list[Tensor]) -> Tensor | None:
    """Mean of maps (B, h, w), each without its negative values and scaled to a maximum of 1: (B, 1, h, w)."""
    if not maps:
        return None
    positive = [values.float().clamp_min(0) for values in maps]
    scaled = [values / values.amax(dim=(1, 2), keepdim=True).clamp_min(TINY) for values in positive]
    mean = torch.stack(scaled).mean(dim=0)
    return _scale_to_one(mean.unsqueeze(1))
