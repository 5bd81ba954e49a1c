"""The localization module of DeNLL (Eq. 5), which predicts where the object is, and the Gaussian mask of its output.

It sees images alone, no labels. The caller decides which loss trains it.

Shapes: `B` batch, images `(B, 3, H, W)`, gaussians `(B, 3)`: centre x, centre y, sigma, in network pixels, where 0 is
the middle of the first pixel; masks `(B, 1, H, W)` in [0, 1]. Everything is f32, whatever the network's precision.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

SMALLEST_SIGMA, LARGEST_SIGMA, FIRST_SIGMA = 0.2, 1.0, 0.5  # shares of the side; unbounded ones collapsed
CENTRAL_SHARE = 24 / 32  # the fixed mask of the paper's Table 4, "w/o LM"
EPSILON = 1e-6


class LocalizationModule(nn.Module):
    """Predicts centre and sigma of the object in an image; starts with the mask in the middle of every image."""

    def __init__(
        self,
        image_size: int,
        centre: Literal["linear", "soft_argmax"],
        sigma: Literal["bounded", "fixed"],
        sigma_fraction: float,
    ) -> None:
        """Build the module.

        Args:
            image_size: H = W in pixels.
            centre: linear, a linear layer that reaches the middle half of the image; or soft_argmax, a heat map.
            sigma: bounded, learned between 0.2 and 1 of the side; or fixed.
            sigma_fraction: a fixed sigma as a share of the side.
        """
        super().__init__()
        self.image_size = image_size
        self.fixed_sigma = sigma_fraction * image_size if sigma == "fixed" else None
        self.soft_argmax = centre == "soft_argmax"
        stride = max(1, round(image_size / 32))  # larger images are reduced to about 32 px
        if self.soft_argmax:
            self.trunk = nn.Sequential(
                *_layer(3, 16, 2 * stride), *_layer(16, 16, 1), *_layer(16, 16, 1, dilation=2), *_layer(16, 16, 1)
            )
            self.heat = nn.Conv2d(16, 1, 1)
            self.last = nn.Linear(16, 1)
        else:
            self.trunk = nn.Sequential(*_layer(3, 8, 4 * stride), *_layer(8, 16, 2))
            side = math.ceil(math.ceil(image_size / (4 * stride)) / 2)
            self.last = nn.Linear(16 * side * side, 3)  # position must survive: no pooling
        for module in (self.last, getattr(self, "heat", self.last)):
            nn.init.normal_(module.weight, std=1e-3)
            nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> gaussians (B, 3); the centre is in the middle half (linear) or anywhere (soft-argmax)."""
        with torch.autocast(images.device.type, enabled=False):
            maps = self.trunk(images.float())
            if self.soft_argmax:
                centre_x, centre_y = soft_argmax(self.heat(maps), self.image_size)
                size = self.last(maps.mean(dim=(2, 3)))[:, 0]
            else:
                shift_x, shift_y, size = self.last(maps.flatten(1)).unbind(dim=1)
                middle, reach = (self.image_size - 1) / 2, self.image_size / 4
                centre_x, centre_y = middle + reach * shift_x.tanh(), middle + reach * shift_y.tanh()
            return torch.stack([centre_x, centre_y, self._sigma(size)], dim=1)

    def _sigma(self, size: Tensor) -> Tensor:
        if self.fixed_sigma is not None:
            return torch.full_like(size, self.fixed_sigma)
        span = LARGEST_SIGMA - SMALLEST_SIGMA
        start = (FIRST_SIGMA - SMALLEST_SIGMA) / span
        return self.image_size * (SMALLEST_SIGMA + span * torch.sigmoid(size + math.log(start / (1 - start))))


def _layer(inputs: int, outputs: int, stride: int, dilation: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def soft_argmax(heat: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """The mean position under the softmax of each heat map: x and y, (B,) each, in image pixels.

    Args:
        heat: (B, 1, h, w) logits.
        image_size: H = W of the images that the maps cover.
    """
    height, width = heat.shape[-2:]
    weight = heat.flatten(1).softmax(dim=1).view(-1, height, width)
    x, y = (cell_centres(cells, image_size, heat.device) for cells in (width, height))
    return (weight.sum(dim=1) * x).sum(dim=1), (weight.sum(dim=2) * y).sum(dim=1)


def cell_centres(cells: int, image_size: int, device: torch.device) -> Tensor:
    """Where the middles of `cells` equal parts of a side of `image_size` pixels are: f32 (cells,) in pixels."""
    return (torch.arange(cells, device=device) + 0.5) * (image_size / cells) - 0.5


def gaussian_mask(gaussians: Tensor, height: int, width: int) -> Tensor:
    """M(i, j) = exp(-((i - p_x)² + (j - p_y)²) / 2σ²), the paper's Eq. 5: gaussians (B, 3) -> masks (B, 1, H, W)."""
    centre_x, centre_y, sigma = gaussians.float().unbind(dim=1)
    x = torch.arange(width, device=gaussians.device, dtype=torch.float32)
    y = torch.arange(height, device=gaussians.device, dtype=torch.float32)
    spread = 2 * sigma.square()[:, None]
    across = torch.exp(-(x - centre_x[:, None]).square() / spread)  # (B, W)
    down = torch.exp(-(y - centre_y[:, None]).square() / spread)  # (B, H)
    return (down[:, :, None] * across[:, None, :]).unsqueeze(1)


def central_mask(images: Tensor) -> Tensor:
    """The same central square for every image (Table 4, "w/o LM"): 1 inside, 0 outside, (B, 1, H, W)."""
    count, _, height, width = images.shape
    mask = torch.zeros(count, 1, height, width, device=images.device)
    top, left = (round(side * (1 - CENTRAL_SHARE) / 2) for side in (height, width))
    mask[:, :, top : height - top, left : width - left] = 1.0
    return mask


def homogeneity_loss(images: Tensor, mask: Tensor) -> Tensor:
    """The label-free loss: variance of the pixels outside the mask over the image's variance, a scalar from 0.

    It is small where the mask covers all that differs from a homogeneous background.

    Args:
        images: (B, 3, H, W).
        mask: (B, 1, H, W), with the gradient.
    """
    outside = 1 - mask
    total = outside.sum(dim=(2, 3), keepdim=True) + EPSILON
    mean = (outside * images).sum(dim=(2, 3), keepdim=True) / total
    variance = (outside * (images - mean).square()).sum(dim=(2, 3)) / total.flatten(1)  # (B, 3)
    return (variance.sum(dim=1) / (images.var(dim=(2, 3), correction=0).sum(dim=1) + EPSILON)).mean()
