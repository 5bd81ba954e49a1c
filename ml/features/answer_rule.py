"""Which of DeNLL's two networks answers, read from noisy labels alone.

If the labels follow the background, g2, which does not see it, contradicts labels that the background names. The
statistic L counts these rows beyond what chance would give. Above a threshold g2 answers alone; otherwise both networks
do, weighed by how well they predict the given labels (docs/log.md).

All predictions are out of sample: of images on which the predictor was not trained.

Shapes: `n` images, `C` classes; log-probabilities (n, C), given labels int64 (n,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

THRESHOLD = 0.016  # set on 40 development cells, of which it separates the confounded ones from all others
DEVIATIONS = 2.0  # of chance that L must exceed as well: with few images chance alone reaches the threshold
NEWTON_STEPS = 30
RIDGE = 1e-3  # on the weights of the stack, which would grow without bound on labels that are fitted perfectly
HALVINGS = 20  # of a Newton step at most


@dataclass(frozen=True)
class BackgroundStatistic:
    """How often the background names a label that the object contradicts, as shares of all images.

    Attributes:
        excess: L, the share of images in which it does, minus the share expected by chance.
        deviation: The standard deviation of that share by chance.
    """

    excess: float
    deviation: float

    @property
    def labels_follow_background(self) -> bool:
        """Whether L is above the threshold, and more than chance."""
        return self.excess > THRESHOLD and self.excess > DEVIATIONS * self.deviation

    @property
    def finding(self) -> str:
        """One clause for the user."""
        answer = "yes" if self.labels_follow_background else "no"
        return f"labels follow the background: {answer}, L = {self.excess:.3f} ± {self.deviation:.3f}"


@dataclass(frozen=True)
class AnswerDecision:
    """Who answers, and why.

    Attributes:
        statistic: L.
        predictor: g2 alone; or stack, softmax(w1·log p1 + w2·log p2).
        weights: w1 and w2; (0, 1) if g2 answers alone.
    """

    statistic: BackgroundStatistic
    predictor: Literal["g2", "stack"]
    weights: tuple[float, float]

    @property
    def reason(self) -> str:
        """One sentence for the user."""
        if self.predictor == "g2":
            return f"{self.statistic.finding}; the prediction without the background answers"
        first, second = self.weights
        return f"{self.statistic.finding}; both predictions answer, with weights {first:.2f} and {second:.2f}"


def decide(first: Tensor, second: Tensor, background: Tensor, labels: Tensor) -> AnswerDecision:
    """Who answers.

    Args:
        first: out-of-sample log-probabilities of g1, which sees the picture, (n, C).
        second: those of g2, which sees the object before the mean background, (n, C).
        background: those of a prediction from the background alone, (n, C).
        labels: given labels int64 (n,).
    """
    statistic = background_statistic(second, background, labels)
    if statistic.labels_follow_background:
        return AnswerDecision(statistic, "g2", (0.0, 1.0))
    return AnswerDecision(statistic, "stack", stack_weights(first, second, labels))


def background_statistic(second: Tensor, background: Tensor, labels: Tensor) -> BackgroundStatistic:
    """L of `decide`'s arguments.

    A hit is an image whose given label g2 ranks in the lower half of all classes, and whose background predicts that
    label. By chance means: with the background's predictions permuted among the images for which g2 predicts the same
    class, which keeps noise that depends on the class alone. Mean and deviation over all permutations are exact.
    """
    count, classes = second.shape
    own = second.gather(1, labels[:, None])
    ruled_out = (second > own).sum(dim=1) >= classes / 2
    named = background.argmax(dim=1)
    hits = int((ruled_out & (named == labels)).sum())

    # tables (C, C): by the class that g2 predicts, how often each label is ruled out, and each class named
    predicted = second.argmax(dim=1)
    contradicted = _count_pairs(predicted[ruled_out], labels[ruled_out], classes)
    answers = _count_pairs(predicted, named, classes)
    groups = answers.sum(dim=1).clamp_min(1)  # images of each predicted class

    # of a random matching of n labels and n answers, the mean and the variance of the number of equal pairs
    expected = (contradicted * answers).sum(dim=1) / groups
    variance = _matching_variance(contradicted, answers, groups)
    return BackgroundStatistic((hits - float(expected.sum())) / count, math.sqrt(float(variance.sum())) / count)


def combine(first: Tensor, second: Tensor, weight_first: Tensor | float, weight_second: Tensor | float) -> Tensor:
    """log softmax(w1·log p1 + w2·log p2), (B, C), of logits of both, (B, C) each."""
    pooled = weight_first * first.log_softmax(dim=1) + weight_second * second.log_softmax(dim=1)
    return pooled.log_softmax(dim=1)


def stack_weights(first: Tensor, second: Tensor, labels: Tensor) -> tuple[float, float]:
    """w1 and w2 under which the given labels are likeliest, by Newton's method in f64.

    Args:
        first: out-of-sample logits or log-probabilities of g1, (n, C).
        second: those of g2.
        labels: given labels int64 (n,).
    """
    views = torch.stack([first.double().log_softmax(dim=1), second.double().log_softmax(dim=1)])  # (2, n, C)
    own = views.gather(2, labels.expand(2, -1).unsqueeze(2))[:, :, 0]  # (2, n)
    start, ridge = views.new_full((2,), 0.5), 2 * RIDGE * torch.eye(2).to(views)

    def objective(weights: Tensor) -> Tensor:
        log_normaliser = torch.einsum("v,vnc->nc", weights, views).logsumexp(dim=1)
        return (log_normaliser - weights @ own).mean() + RIDGE * (weights - start).square().sum()

    weights = start
    for _ in range(NEWTON_STEPS):
        # gradient: expected minus observed log-probability; Hessian: their covariance under the prediction
        p = torch.einsum("v,vnc->nc", weights, views).softmax(dim=1)
        mean = torch.einsum("nc,vnc->vn", p, views)
        gradient = (mean - own).mean(dim=1) + 2 * RIDGE * (weights - start)
        second_moment = torch.einsum("nc,unc,vnc->uv", p, views, views) / len(labels)
        hessian = second_moment - mean @ mean.T / len(labels) + ridge
        step = torch.linalg.solve(hessian, gradient)

        # halve the step until it helps
        current = objective(weights)
        for _ in range(HALVINGS):
            if objective(weights - step) < current:
                weights = weights - step
                break
            step = step / 2
        else:
            break
    return float(weights[0]), float(weights[1])


def _count_pairs(rows: Tensor, columns: Tensor, classes: int) -> Tensor:
    """How often each pair of classes occurs, f64 (C, C)."""
    return torch.bincount(rows * classes + columns, minlength=classes**2).view(classes, classes).double()


def _matching_variance(labels: Tensor, answers: Tensor, groups: Tensor) -> Tensor:
    """Variance of the number of equal pairs in a random matching, f64 (C,), one for each group.

    The variance of Σ d(i, π(i)) over permutations π of n is Σ d̄² / (n - 1), d̄ being d without its row and column means.

    Args:
        labels: how many rows of each group have each label; rows with none of them make up the rest, (C, C).
        answers: how many have each answer, (C, C).
        groups: n of each group, at least 1, (C,).
    """
    n = groups[:, None]
    rest = (n - labels.sum(dim=1, keepdim=True)).clamp_min(0)
    label_counts = torch.cat([labels, rest], dim=1)[:, :, None]  # (C, C + 1, 1)
    answer_counts = answers[:, None, :]  # (C, 1, C)
    equal = torch.eye(labels.shape[1], dtype=torch.float64, device=labels.device)
    equal = torch.cat([equal, torch.zeros_like(equal[:1])])  # (C + 1, C)
    row_mean = equal * answer_counts / n[:, :, None]
    row_mean = row_mean.sum(dim=2, keepdim=True)
    column_mean = (equal * label_counts / n[:, :, None]).sum(dim=1, keepdim=True)
    grand_mean = (row_mean * label_counts / n[:, :, None]).sum(dim=1, keepdim=True)
    centred = equal - row_mean - column_mean + grand_mean
    return (label_counts * answer_counts * centred.square()).sum(dim=(1, 2)) / (groups - 1).clamp_min(1)
