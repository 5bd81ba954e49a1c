"""Estimates how labels were mistaken: the transition matrix T, the noise rate, and how sure both are.

Two estimates follow each other. Neither sees a clean label.

1. `from_consensus`. Images with similar features mostly have the same clean class, so the given labels of an image and
   of its nearest neighbours are several draws from the same row of T. T and the shares of the classes are the maximum
   of their joint likelihood. The idea is HOC's (Zhu, Song, Liu: Clusterability as an Alternative to Anchor Points When
   Learning with Noisy Labels, ICML 2021). They match the moments of triples, a tensor of C³ entries; the likelihood of
   whole neighbourhoods, maximised by expectation maximisation (Dawid, Skene 1979, of one annotator), needs N C of them.
   It takes neighbours of another class for wrong labels, so it overestimates where features are weak.
2. `refine`. A forward-corrected classifier predicts clean classes of images that it did not learn from. Its temperature
   and T are the maximum of the likelihood of the given labels: what remains wrong where predictions are certain is
   noise, what is unsure without it is not.

Shapes: `N` images, `C` classes, `B` bootstrap samples. Labels are int64 in [0, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ml.features import assignment

FIRST_DIAGONAL = 0.8  # of T, where the first estimate starts: most labels are right
ITERATIONS = 200  # of expectation maximisation
TOLERANCE = 1e-5  # largest change of an entry of T at which it ends
PSEUDO_LABELS = 0.1  # added to every class's counts, spread like its start: a class without images has a row
MAX_SCALE = 30.0  # of logits
MIN_LIKELIHOOD = 1e-300  # of a given label: its logarithm stays finite
MIN_VARIANCE = 1e-12
SAMPLES = 40  # B
SAMPLE_ITERATIONS = 8  # of expectation maximisation on a bootstrap sample, from the whole estimate
NORMAL_95 = 1.96  # standard deviations of a normal distribution that hold 95 %


@dataclass(frozen=True)
class Refined:
    """The estimate of `refine`.

    Attributes:
        transition: T, f64 (C, C), rows sum to 1.
        scale: The factor on the logits, the inverse of a temperature.
        loss: Mean of -log P(given label) at the maximum.
    """

    transition: Tensor
    scale: float
    loss: float


def from_consensus(votes: Tensor) -> tuple[Tensor, Tensor]:
    """T and class shares from the labels of neighbourhoods.

    The labels of neighbourhoods are as likely under any order of the clean classes, and where a class has more wrong
    labels than right ones the search ends in another order. The order is that under which most labels are right.

    Args:
        votes: (N, C), how often each class is given among an image and its nearest neighbours.

    Returns:
        T f64 (C, C) and the shares of the clean classes f64 (C,).
    """
    classes = votes.shape[1]
    counts = votes.double()
    start = diagonal_start(classes).to(counts)
    transition, shares = start, counts.new_full((classes,), 1 / classes)
    for _ in range(ITERATIONS):
        # P(clean class | labels of the neighbourhood), and the labels that each class explains
        log_joint = counts @ transition.log().t() + shares.log()
        responsibility = log_joint.softmax(dim=1)
        previous, transition = transition, _rows_of(responsibility.t() @ counts, start)
        shares = (responsibility.mean(dim=0) + 1e-9) / (1 + classes * 1e-9)
        if bool((transition - previous).abs().max() < TOLERANCE):
            break
    order = assignment.best_assignment((shares[:, None] * transition).t())  # of each class, the row that is its own
    return transition[order], shares[order]


def refine(logits: Tensor, labels: Tensor, start: Tensor) -> Refined:
    """T and a temperature from out-of-fold logits of clean classes.

    Args:
        logits: (N, C), of images that the classifier did not learn from.
        labels: Given labels (N,).
        start: T (C, C), of the first estimate; entries of 0 stay 0.
    """
    first = Refined(start.double(), 1.0, float("inf"))
    return _maximise(logits.double(), labels, first, torch.ones_like(labels, dtype=torch.float64), ITERATIONS)


def log_posterior(logits: Tensor, labels: Tensor, estimate: Refined) -> Tensor:
    """log P(clean class | image, given label), f64 (N, C).

    Args:
        logits, labels: As of `refine`.
        estimate: T and scale.
    """
    joint = (estimate.scale * logits.double()).log_softmax(dim=1) + _columns(estimate.transition, labels).log()
    return joint.log_softmax(dim=1)


def noise_rate(logits: Tensor, labels: Tensor, estimate: Refined) -> float:
    """Expected share of wrong labels, in [0, 1]; arguments as of `log_posterior`."""
    return float(1 - log_posterior(logits, labels, estimate).gather(1, labels[:, None]).exp().mean())


def noise_interval(
    logits: Tensor, labels: Tensor, estimate: Refined, generator: torch.Generator
) -> tuple[float, float]:
    """An interval of the noise rate.

    It is as wide as two uncertainties together. Sampling: 1.96 standard deviations over bootstrap samples. Undecided
    labels: the expected share of labels that are called wrong and are right, or the other way round, if each is judged
    by what is more probable. Where mistakes are more frequent among images that are hard to tell apart, as those of
    people are, the noise rate is off by up to that share.

    Args:
        logits, labels: As of `refine`.
        estimate: T and scale.
        generator: Draws bootstrap samples; on any device.
    """
    z, count = logits.double(), len(labels)

    def right(under: Refined) -> Tensor:
        return log_posterior(z, labels, under).gather(1, labels[:, None])[:, 0].exp()

    rates = []
    for _ in range(SAMPLES):
        drawn = torch.randint(count, (count,), generator=generator, device=generator.device)
        weights = torch.bincount(drawn, minlength=count).double().to(z.device)
        sampled = _maximise(z, labels, estimate, weights, SAMPLE_ITERATIONS)
        rates.append(1 - float(right(sampled) @ weights) / count)
    p = right(estimate)
    half = NORMAL_95 * float(np.std(rates)) + float(torch.minimum(p, 1 - p).mean())
    rate = float(1 - p.mean())
    return max(rate - half, 0.0), min(rate + half, 1.0)


def _maximise(z: Tensor, labels: Tensor, start: Refined, weights: Tensor, iterations: int) -> Refined:
    """Expectation maximisation of T and the scale, each image counted `weights` times."""
    transition, scale, loss, total = start.transition, start.scale, start.loss, weights.sum()
    for _ in range(iterations):
        # P(clean class | image) and P(clean class | image, given label)
        p = (scale * z).softmax(dim=1)
        joint = p * _columns(transition, labels)
        likelihood = joint.sum(dim=1, keepdim=True).clamp_min(MIN_LIKELIHOOD)
        responsibility = joint / likelihood
        loss = float(-(likelihood[:, 0].log() @ weights) / total)

        # T by the labels that each class explains; the scale by a Newton step on the expected log likelihood
        explained = _sum_by_label(responsibility * weights[:, None], labels)
        previous, transition = transition, _rows_of(explained.t(), start.transition)
        slope = float(((responsibility - p) * z).sum(dim=1) @ weights)
        curvature = float(((p * z.square()).sum(dim=1) - (p * z).sum(dim=1).square()) @ weights)
        former = scale
        scale = min(max(scale + slope / max(curvature, MIN_VARIANCE), scale / 2), 2 * scale, MAX_SCALE)
        if bool((transition - previous).abs().max() < TOLERANCE) and abs(scale - former) < TOLERANCE * scale:
            break
    return Refined(transition, scale, loss)


def _columns(transition: Tensor, labels: Tensor) -> Tensor:
    """P(given label | clean class) of each image's label, (N, C)."""
    return transition.t()[labels]


def _sum_by_label(values: Tensor, labels: Tensor) -> Tensor:
    """Sums (C, C) over the images of each given label of (N, C)."""
    if values.is_cuda:  # a product, since scattered sums differ from run to run
        return functional.one_hot(labels, values.shape[1]).to(values).t() @ values
    return values.new_zeros((values.shape[1], values.shape[1])).index_add_(0, labels, values)


def _rows_of(counts: Tensor, start: Tensor) -> Tensor:
    """T from expected counts (C, C) of (clean class, given label), with a few pseudo-labels spread like `start`."""
    smoothed = counts + PSEUDO_LABELS * start
    return smoothed / smoothed.sum(dim=1, keepdim=True)


def diagonal_start(classes: int) -> Tensor:
    """A T f64 (C, C) that is right mostly, and wrong evenly."""
    if classes == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    start = torch.full((classes, classes), (1 - FIRST_DIAGONAL) / (classes - 1), dtype=torch.float64)
    return start.fill_diagonal_(FIRST_DIAGONAL)
