"""The transition matrix between clean and given labels, T[i, j] = P(given j | clean i): estimated, and used in losses.

Anchor points are after Patrini et al. (CVPR 2017), importance weights after Liu & Tao (2016) and Xia et al. (NeurIPS
2019). It knows no network.

Shapes: `N` samples, `B` batch, `C` classes, logits (B, C), T (C, C) with rows that sum to 1.
"""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ml import errors
from ml.method import MethodParams

LEAST = 1e-30  # stands for an entry of 0, which has no logarithm
LEAST_DENOMINATOR = 1e-8
ROUNDING = 1e-3  # a row that is written down sums to 1 up to this

Rows = tuple[tuple[float, ...], ...]


class TransitionParams(MethodParams):
    """Where T comes from."""

    transition: Rows | None = Field(
        default=None,
        description="The transition matrix, if it is known: a row for each class in order, of the probabilities of "
        "every given label; rows sum to 1. Without it, it is estimated.",
    )
    estimate: float = Field(
        default=0.5,
        gt=0.0,
        lt=1.0,
        description="Share of the epochs that train plainly, for the estimate; at least one. None with a known matrix.",
    )
    anchor_quantile: float = Field(
        default=0.97,
        gt=0.5,
        le=1.0,
        description="The surest image of a class tells its row of the matrix. Surer ones than this share of all images "
        "are taken for outliers; 1 takes none, as for 100 classes.",
    )

    @field_validator("transition")
    @classmethod
    def _rows_must_be_distributions(cls, rows: Rows | None) -> Rows | None:
        if rows is None:
            return None
        if not rows or any(len(row) != len(rows) for row in rows):
            raise ValueError("a transition matrix has as many columns as rows")
        if any(not 0.0 <= entry <= 1.0 for row in rows for entry in row):
            raise ValueError("the entries of a transition matrix lie in [0, 1]")
        if any(abs(sum(row) - 1.0) > ROUNDING for row in rows):
            raise ValueError("the rows of a transition matrix sum to 1")
        return rows


def known_matrix(rows: Rows | None, classes: int) -> Tensor:
    """A known T, f32 (C, C), or the identity; UnusableData if it is of another number of classes."""
    if rows is None:
        return torch.eye(classes)
    if len(rows) != classes:
        raise errors.UnusableData(
            f"the transition matrix is of {len(rows)} classes, the data set of {classes}", code="transition_classes"
        )
    return _normalised(torch.tensor(rows, dtype=torch.float64)).float()


def estimate_matrix(probabilities: Tensor, quantile: float = 1.0) -> Tensor:
    """T by anchor points, f32 (C, C), from the softmax of a network that has learned the given labels, (N, C).

    Row i is the answer to the image that is likeliest of class i, once those at or above the `quantile` of that
    likelihood are set aside (1: none).
    """
    found = probabilities.float()
    return _normalised(torch.stack([found[_anchor(column, quantile)] for column in found.unbind(dim=1)]))


def forward_cross_entropy(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Mean H(Y, softmax(logits) T), Patrini et al. Eq. 5: a scalar; with T = I it is the cross-entropy.

    As a sum of logarithms: a label that the network thinks impossible still has a gradient.
    """
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p + _towards(labels, transition).clamp_min(LEAST).log()).logsumexp(dim=1).mean()


def importance_weights(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """β = p_y / (Tᵀp)_y of every sample, (B,): how much likelier its label is among clean ones than among given ones.

    Differentiable in both. T may hold a learned slack: its entries count from 0 up, so that β stays below 1 / T_yy.
    """
    p = logits.float().softmax(dim=1)
    own = p.gather(1, labels[:, None])[:, 0]
    return own / (p * _towards(labels, transition.clamp_min(0.0))).sum(dim=1).clamp_min(LEAST_DENOMINATOR)


def _anchor(likelihoods: Tensor, quantile: float) -> Tensor:
    """The position of the largest of (N,) below the quantile; of all where none is below."""
    if quantile == 1.0:
        return likelihoods.argmax()
    above = likelihoods >= likelihoods.quantile(quantile, interpolation="higher")
    return torch.where(above & ~above.all(), -1.0, likelihoods).argmax()


def _towards(labels: Tensor, transition: Tensor) -> Tensor:
    """T's column of each label, (B, C): by which probability each class is given this label."""
    return transition.t()[labels]


def _normalised(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True)
