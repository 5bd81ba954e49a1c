"""Localization of the object by what stands out from the image's border in a backbone's features.

Nothing is trained: the border contrast of the feature maps at stride 16 (`ml.evaluation.attention`) is a mask of its
own, and its moments are those of the Gaussian mask of DeNLL's Eq. 5. Labels are not seen.

Shapes: `B` batch, `S` side of the images in pixels; feature maps (B, D, h, w), masks (B, 1, h, w) in [0, 1], gaussians
(B, 3): centre x, centre y and sigma in image pixels, where 0 is the middle of the first pixel, as everywhere in
`ml.blocks.localization`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ml.blocks import localization
from ml.evaluation import attention

FINEST = (1 / 32,)  # smoothing of the map whose moments count: the wider ones draw the centre towards the middle
THRESHOLD = 0.5  # of a map's range: what is below does not count for the moments
SIGMA_SCALE = 1.3  # sigma of the mask over the map's standard deviation: objects fill more than their middle
SMALLEST_SIGMA, LARGEST_SIGMA = 0.08, 0.25  # shares of the side; above, the corners let the background through
EPSILON = 1e-6


class BorderLocalizer(nn.Module):
    """Feature maps of stride 16 -> the Gaussian of the object; without parameters, the same in training and at test."""

    def __init__(self, image_size: int) -> None:
        """`image_size` is S, in whose pixels the Gaussians are."""
        super().__init__()
        self.image_size = image_size

    def contrast(self, maps: Tensor) -> Tensor:
        """The map mask: feature maps (B, D, h, w) -> f32 (B, 1, h', w') in [0, 1], each image's largest value 1."""
        return attention.contrast_to_border([maps])

    def forward(self, maps: Tensor) -> Tensor:
        """Feature maps (B, D, h, w) -> gaussians f32 (B, 3)."""
        return gaussian_of_map(attention.contrast_to_border([maps], FINEST), self.image_size)


def gaussian_of_map(masks: Tensor, image_size: int) -> Tensor:
    """Centre and spread of the part of each map above `THRESHOLD` of its range.

    Args:
        masks: (B, 1, h, w) over the whole image. A constant one yields the widest Gaussian, in the middle.
        image_size: S in pixels.

    Returns:
        gaussians f32 (B, 3), sigma between 0.08 and 0.25 of the side.
    """
    weights = _above_threshold(masks.float())
    height, width = masks.shape[2:]
    x, y = (localization.cell_centres(cells, image_size, masks.device) for cells in (width, height))

    # mean and variance along both axes; the Gaussian is isotropic, so its variance is their mean
    across, down = weights.sum(dim=1), weights.sum(dim=2)  # (B, w), (B, h)
    centre_x, centre_y = across @ x, down @ y
    variance_x = (across * (x - centre_x[:, None]).square()).sum(dim=1)
    variance_y = (down * (y - centre_y[:, None]).square()).sum(dim=1)
    sigma = SIGMA_SCALE * ((variance_x + variance_y) / 2).sqrt()
    sigma = sigma.clamp(SMALLEST_SIGMA * image_size, LARGEST_SIGMA * image_size)
    return torch.stack([centre_x, centre_y, sigma], dim=1)


def _above_threshold(masks: Tensor) -> Tensor:
    """(B, 1, h, w) -> weights (B, h, w) that sum to 1 for each image."""
    lowest, highest = masks.amin(dim=(2, 3), keepdim=True), masks.amax(dim=(2, 3), keepdim=True)
    above = ((masks - lowest) / (highest - lowest).clamp_min(EPSILON) - THRESHOLD).clamp_min(0)[:, 0]
    total = above.sum(dim=(1, 2), keepdim=True)
    height, width = above.shape[1:]
    return torch.where(total > 0, above / total.clamp_min(EPSILON), 1 / (height * width))
