"""The transition matrix between clean and given labels, T[i, j] = P(given j | clean i): its estimate and its losses.

Anchor points are from Patrini et al. (CVPR 2017), importance weights from Liu and Tao (2016) and Xia et al. (NeurIPS
2019).

Shapes: `N` samples, `B` batch, `C` classes, logits (B, C), T (C, C) with rows that sum to 1.
"""

from __future__ import annotations

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ml import errors
from ml.method import MethodParams

MIN_ENTRY = 1e-30  # instead of an entry of 0, which has no logarithm
MIN_DENOMINATOR = 1e-8
ROUNDING = 1e-3  # tolerance on the sum of a row that is written down

Rows = tuple[tuple[float, ...], ...]


class TransitionParams(MethodParams):
    """A known transition matrix, or how to estimate it."""

    transition: Rows | None = Field(
        default=None,
        description="The transition matrix, if it is known: a row for each class in order, with the probabilities of "
        "all given labels; rows sum to 1. Without it, it is estimated.",
    )
    estimate: float = Field(
        default=0.5,
        gt=0.0,
        lt=1.0,
        description="Share of the epochs of plain training before the estimate; at least one epoch. None with a known "
        "matrix.",
    )
    anchor_quantile: float = Field(
        default=0.97,
        gt=0.5,
        le=1.0,
        description="The prediction for the most confident image of a class is the class's row of the matrix. Images "
        "above this quantile of the confidence are left out as outliers; 1 leaves out none, as for 100 classes.",
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
    """The transition matrix that the params name, f32 (C, C); the identity if they name none.

    Args:
        rows: of T, or None.
        classes: C.

    Raises:
        errors.UnusableData: if the matrix has another number of classes.
    """
    if rows is None:
        return torch.eye(classes)
    if len(rows) != classes:
        raise errors.UnusableData(
            f"the transition matrix is of {len(rows)} classes, the data set of {classes}", code="transition_classes"
        )
    return _normalise_rows(torch.tensor(rows, dtype=torch.float64)).float()


def estimate_matrix(probabilities: Tensor, quantile: float = 1.0) -> Tensor:
    """T estimated by anchor points, f32 (C, C).

    Row i is the prediction for the anchor point of class i: the image with the largest probability of i.

    Args:
        probabilities: softmax of a network that was trained on the given labels, (N, C).
        quantile: images at or above this quantile of the probability of i are no anchor points; 1 excludes none.
    """
    p = probabilities.float()
    return _normalise_rows(torch.stack([p[_anchor_point(column, quantile)] for column in p.unbind(dim=1)]))


def forward_cross_entropy(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Forward correction: mean H(Y, softmax(logits) T), a scalar (Patrini et al., Eq. 5).

    It is summed in logarithms, so a label that the network finds impossible still has a gradient.

    Args:
        logits: of clean classes, (B, C).
        labels: given labels int64 (B,).
        transition: T; with the identity the loss is the cross-entropy.
    """
    log_p = logits.float().log_softmax(dim=1)
    return -(log_p + _label_columns(labels, transition).clamp_min(MIN_ENTRY).log()).logsumexp(dim=1).mean()


def importance_weights(logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """β = p_y / (Tᵀp)_y of every sample, (B,): P(y is clean | x) over P(y is given | x).

    Args:
        logits: of clean classes, (B, C).
        labels: given labels int64 (B,).
        transition: T, maybe with a learned correction; negative entries count as 0, so β stays below 1 / T_yy. Both
            logits and T have gradients.
    """
    p = logits.float().softmax(dim=1)
    label_probability = p.gather(1, labels[:, None])[:, 0]
    given_probability = (p * _label_columns(labels, transition.clamp_min(0.0))).sum(dim=1)
    return label_probability / given_probability.clamp_min(MIN_DENOMINATOR)


def _anchor_point(probabilities: Tensor, quantile: float) -> Tensor:
    """The position of the largest of (N,) below the quantile; of all where none is below."""
    if quantile == 1.0:
        return probabilities.argmax()
    above = probabilities >= probabilities.quantile(quantile, interpolation="higher")
    return torch.where(above & ~above.all(), -1.0, probabilities).argmax()


def _label_columns(labels: Tensor, transition: Tensor) -> Tensor:
    """T's column of each given label, (B, C): P(this label | clean class)."""
    return transition.t()[labels]


def _normalise_rows(rows: Tensor) -> Tensor:
    return rows / rows.sum(dim=1, keepdim=True)
