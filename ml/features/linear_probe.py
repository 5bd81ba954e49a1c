"""Linear classifiers on fixed features: a convex problem, solved in seconds.

Features are standardised and rotated onto their principal components, whose total variance is scaled to 1, so that one
L2 penalty means the same for every data set. The classifier is multinomial logistic regression, fitted by L-BFGS in
coordinates in which all components curve the loss about alike: their variances differ by orders of magnitude, and so
would the steps. With a transition matrix it is forward-corrected (Patrini et al., CVPR 2017, Theorem 2): it predicts
clean classes. Projection and classifier together are one linear map of the features (`fold_into`).

The same numbers come out on every run. Work is done in chunks of rows, so the memory beyond the arguments and results
is bounded at any number of images.

Shapes: `N` images, `D` features, `K` components, `C` classes. Labels are int64 in [0, C); features and projections f32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COMPONENTS = 256
ITERATIONS = 60  # of L-BFGS
TOLERANCE = 1e-6  # change of the loss at which it ends
SMALLEST_DEVIATION = 1e-6  # of a feature that is the same for all images
MIN_PROBABILITY = 1e-6  # added to that of a label under a transition matrix: an impossible label costs a finite loss
CHUNK_ENTRIES = 1 << 22  # of the arrays that a chunk of rows needs


@dataclass(frozen=True)
class Projection:
    """Features (N, D) -> (features - mean) @ basis (N, K).

    Attributes:
        mean: f32 (D,).
        basis: f32 (D, K); the projections of the features it was fitted to have mean 0 and total variance 1.
    """

    mean: Tensor
    basis: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Project (N, D) of any floating type, f32 (N, K)."""
        rows = [(chunk.float() - self.mean) @ self.basis for chunk in torch.split(features, _rows(features.shape[1]))]
        return torch.cat(rows) if rows else features.new_zeros((0, self.basis.shape[1]), dtype=torch.float32)


@dataclass(frozen=True)
class Classifier:
    """Logits of projected features: projected @ weight + bias.

    Attributes:
        weight: f32 (K, C).
        bias: f32 (C,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, projected: Tensor) -> Tensor:
        """Logits (N, C) of (N, K)."""
        return projected @ self.weight + self.bias

    def scaled(self, factor: float) -> Classifier:
        """The classifier whose logits are `factor` times these."""
        return Classifier(self.weight * factor, self.bias * factor)


def fit_projection(features: Tensor, components: int = COMPONENTS) -> Projection:
    """Standardisation and principal components.

    Args:
        features: (N, D) of any floating type, N >= 1.
        components: How many directions are used at most.

    Returns:
        The projection onto min(components, D) directions of largest variance of the standardised features. Where all
        images have the same features, it projects to 0.
    """
    count, dimension = features.shape
    chunks = torch.split(features, _rows(dimension))
    mean = torch.zeros(dimension, dtype=torch.float64, device=features.device)
    for chunk in chunks:
        mean += chunk.double().sum(dim=0) / count
    covariance = torch.zeros(dimension, dimension, dtype=torch.float64, device=features.device)
    for chunk in chunks:
        centred = chunk.float() - mean.float()
        covariance += (centred.t() @ centred).double()
    covariance /= count

    # The covariance of standardised features; of a constant feature it is 0
    deviation = covariance.diagonal().sqrt().clamp_min(SMALLEST_DEVIATION)
    variances, directions = torch.linalg.eigh(covariance / deviation / deviation[:, None])
    largest = variances[-components:].clamp_min(0.0)
    scale = largest.sum().sqrt().clamp_min(SMALLEST_DEVIATION)
    basis = directions[:, -components:] / deviation[:, None] / scale
    return Projection(mean.float(), basis.float())


def fit(
    projected: Tensor,
    labels: Tensor,
    classes: int,
    penalty: float,
    *,
    transition: Tensor | None = None,
    weights: Tensor | None = None,
    start: Classifier | None = None,
) -> Classifier:
    """Multinomial logistic regression: mean cross-entropy plus penalty / 2 * |parameters|².

    Args:
        projected: f32 (N, K).
        labels: Given labels (N,).
        classes: C.
        penalty: > 0.
        transition: T (C, C), P(given label j | clean class i); the logits are then of clean classes (Patrini et al.,
            Eq. 5). None is the identity.
        weights: Of each image, (N,), not negative and not all 0; None weighs all alike.
        start: Where the search begins, the minimum of a similar problem; None begins at 0.

    Returns:
        The minimum, up to the tolerance of L-BFGS. It is unique without a transition matrix.
    """
    count, components = projected.shape
    importance = projected.new_full((count,), 1 / count) if weights is None else weights.float() / weights.sum()
    columns = None if transition is None else transition.to(projected).t().contiguous()  # a row for each given label

    # What is optimised is parameters / step. With the loss's curvature at even probabilities as its inverse square, the
    # Hessian of these is near the identity, because principal components do not correlate.
    second_moments = projected.new_zeros(components + 1)
    for rows in _slices(count, components):
        second_moments[:-1] += importance[rows] @ projected[rows].square()
    second_moments[-1] = 1.0
    step = ((classes - 1) / classes**2 * second_moments + penalty).rsqrt()[:, None]
    if start is None:
        scaled = projected.new_zeros((components + 1, classes))
    else:
        scaled = torch.cat([start.weight, start.bias[None]]) / step

    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe", tolerance_change=TOLERANCE
    )

    def loss_and_gradient() -> Tensor:
        parameters = step * scaled
        weight, bias = parameters[:-1], parameters[-1]
        loss = penalty / 2 * parameters.double().square().sum()
        gradient = penalty * parameters
        for rows in _slices(count, classes):
            residual, losses = _residuals(projected[rows] @ weight + bias, labels[rows], columns)
            residual *= importance[rows, None]
            gradient[:-1] += projected[rows].t() @ residual
            gradient[-1] += residual.sum(dim=0)
            loss += (losses * importance[rows]).double().sum()
        scaled.grad = step * gradient
        return loss

    with torch.no_grad():
        optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
        parameters = step * scaled
        return Classifier(parameters[:-1], parameters[-1])


def fold_into(linear: nn.Linear, projection: Projection, classifier: Classifier) -> None:
    """Set weight (C, D) and bias (C,) of a layer so that it maps features (N, D) to the classifier's logits."""
    weight = projection.basis.double() @ classifier.weight.double()  # (D, C)
    bias = classifier.bias.double() - projection.mean.double() @ weight
    with torch.no_grad():
        linear.weight.copy_(weight.t())
        linear.bias.copy_(bias)


def _residuals(logits: Tensor, labels: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of the loss by the logits (B, C), and the loss of each image (B,).

    The gradient is p - P(clean class | image, given label); without a transition matrix the latter is one-hot.
    """
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    if columns is None:
        losses = -log_p.gather(1, labels[:, None])[:, 0]
        return p.scatter_add(1, labels[:, None], -torch.ones_like(losses)[:, None]), losses
    joint = p * columns[labels]  # P(clean class, given label | image)
    given_label = joint.sum(dim=1, keepdim=True)
    smoothed = given_label + MIN_PROBABILITY
    return (p * given_label - joint) / smoothed, -smoothed[:, 0].log()


def _rows(entries: int) -> int:
    """Rows of a chunk whose rows have so many entries."""
    return max(1, CHUNK_ENTRIES // max(entries, 1))


def _slices(count: int, entries: int) -> Iterator[slice]:
    """Chunks of `count` rows."""
    size = _rows(entries)
    return (slice(start, start + size) for start in range(0, count, size))
