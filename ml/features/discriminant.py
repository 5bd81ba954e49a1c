"""Linear discriminant analysis of images whose classes are known by probability: one Gaussian for each class.

The Gaussians have one covariance in common (Fisher 1936). What they predict is independent of much of what logistic
regression gets wrong, and the space in which that covariance is the identity is one in which neighbours mostly share a
class: directions along which images of one class differ count little there. Both cost one pass over the images.

The covariance is shrunk towards a multiple of the identity, by as much as there are too few images to know it:
components / (components + images).

Shapes: `N` images, `K` components, `C` classes. Projected features are f32 (N, K) as of
`ml.features.linear_probe.Projection`; memberships are probabilities of classes, (N, C), rows sum to 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ml.features.linear_probe import CHUNK_ENTRIES

FOLDS = 10  # each costs the inverse of a covariance, and no pass over the images
LEAST_IMAGES = 1e-6  # of a class, at the mean of all: one without images has a mean and a prior
LEAST_VARIANCE = 1e-9  # of a component within classes, where all images of a class are the same


class Moments(NamedTuple):
    """Sums over images; those of two sets of images add up to those of both."""

    images: Tensor  # f64 (C,), expected number in each class
    sums: Tensor  # f64 (C, K), of projected features
    products: Tensor  # f64 (K, K), of pairs of components


class Gaussians(NamedTuple):
    """A Gaussian for each class, with one covariance."""

    means: Tensor  # f64 (C, K)
    log_priors: Tensor  # f64 (C,)
    factor: Tensor  # f64 (K, K), lower triangular: the covariance is factor @ factor.t()

    def logits(self, projected: Tensor) -> Tensor:
        """log P(class | image) up to a constant of each image, f64 (N, C)."""
        weight = torch.cholesky_solve(self.means.t().contiguous(), self.factor)
        offsets = self.log_priors - (self.means.t() * weight).sum(dim=0) / 2
        logits: Tensor = projected.double() @ weight + offsets
        return logits

    def whiten(self, projected: Tensor) -> Tensor:
        """Coordinates f32 (N, K) in which the covariance is the identity."""
        identity = torch.eye(len(self.factor)).to(self.factor)
        inverse: Tensor = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        return projected @ inverse.t().float()


def out_of_fold(projected: Tensor, memberships: Tensor, folds: Tensor) -> Tensor:
    """Logits f64 (N, C) of every image by Gaussians of the other folds; 0 where there is no other image.

    Args:
        projected: (N, K).
        memberships: (N, C).
        folds: int64 (N,), as `cross_validation.assign_folds` returns them.
    """
    parts = {fold: folds == fold for fold in sorted(set(folds.tolist()))}
    moments = {fold: gather(projected[rows], memberships[rows]) for fold, rows in parts.items()}
    total = Moments(*(sum(values[1:], start=values[0]) for values in zip(*moments.values(), strict=True)))
    logits = torch.zeros_like(memberships, dtype=torch.float64)
    if len(parts) > 1:
        for fold, rows in parts.items():
            others = Moments(*(all_ - own for all_, own in zip(total, moments[fold], strict=True)))
            logits[rows] = fit(others).logits(projected[rows])
    return logits


def gather(projected: Tensor, memberships: Tensor) -> Moments:
    """The sums over images.

    Args:
        projected: (N, K).
        memberships: (N, C).
    """
    components = projected.shape[1]
    sums = torch.zeros(memberships.shape[1], components, dtype=torch.float64, device=projected.device)
    products = sums.new_zeros(components, components)
    for rows in torch.split(torch.arange(len(projected), device=projected.device), CHUNK_ENTRIES // components):
        x = projected[rows].double()
        sums += memberships[rows].double().t() @ x
        products += x.t() @ x
    return Moments(memberships.double().sum(dim=0), sums, products)


def fit(moments: Moments) -> Gaussians:
    """The Gaussians with these moments, their covariance shrunk."""
    images = moments.images + LEAST_IMAGES
    count, components = images.sum(), len(moments.products)
    overall = moments.sums.sum(dim=0) / moments.images.sum()
    means = (moments.sums + LEAST_IMAGES * overall) / images[:, None]
    within = (moments.products - means.t() @ moments.sums) / count
    variance = (within.trace() / components).clamp_min(LEAST_VARIANCE)
    shrinkage = components / (components + count)
    identity = torch.eye(components).to(within)
    covariance = (1 - shrinkage) * within + shrinkage * variance * identity
    return Gaussians(means, (images / count).log(), torch.linalg.cholesky(covariance))
