"""What several annotators probably mean, though some err more often than others, and not all in the same way.

Dawid and Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm, Applied Statistics 28
(1979). Each annotator has a matrix of how classes are mistaken. EM alternates between the probability of each class
for each image, given the votes, and these matrices, given the probabilities. It starts from the shares of votes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ITERATIONS = 100  # at most
FEWEST_ITERATIONS = 5  # however many images and classes there are
MOST_PROBABILITIES = 1 << 29  # of all iterations and annotators, which takes seconds: then there are fewer iterations
TOLERANCE = 1e-5  # of the mean log-likelihood of an image: a smaller gain ends it
SMOOTHING = 0.01  # votes that each annotator has beside the real ones, of every class for every class
CHUNK = 1 << 22  # probabilities that are computed at a time


class DawidSkene(NamedTuple):
    """The estimate.

    Attributes:
        label: int64 (N,), the most probable class; of several, the one with the lowest number.
        probability: float64 (N,), its probability, in (0, 1].
        confusion: float64 (A, C, C), P(vote j | true class i) of each annotator; rows sum to 1.
        prior: float64 (C,), the share of each class.
    """

    label: NDArray[np.int64]
    probability: NDArray[np.float64]
    confusion: NDArray[np.float64]
    prior: NDArray[np.float64]


def fit(votes: NDArray[np.int64], classes: int) -> DawidSkene:
    """Estimate the true class of every image, and the errors of every annotator.

    Args:
        votes: int64 (N, A), the class that each annotator has voted for; -1 where one has not voted. Each image has at
            least one vote.
        classes: C, how many there are.
    """
    # Images with the same votes have the same probabilities.
    patterns, place, counts = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    chunks = np.array_split(np.arange(len(patterns)), max(1, len(patterns) * classes // CHUNK))
    weights = counts.astype(np.float64)

    # Start: the share of votes that each class has.
    prior = np.zeros(classes)
    joint = np.zeros((votes.shape[1], classes, classes))
    for rows in chunks:
        _add_counts(prior, joint, patterns[rows], _shares(patterns[rows], classes), weights[rows])

    likelihood = -np.inf
    affordable = MOST_PROBABILITIES // (patterns.size * classes)
    for _ in range(min(ITERATIONS, max(FEWEST_ITERATIONS, affordable))):
        log_prior, log_confusion = _estimate(prior, joint)
        prior, joint, total = np.zeros_like(prior), np.zeros_like(joint), 0.0
        for rows in chunks:
            probabilities, log_evidence = _posterior(patterns[rows], log_prior, log_confusion)
            _add_counts(prior, joint, patterns[rows], probabilities, weights[rows])
            total += float(weights[rows] @ log_evidence)
        gain, likelihood = total / len(votes) - likelihood, total / len(votes)
        if gain < TOLERANCE:
            break

    log_prior, log_confusion = _estimate(prior, joint)
    label, probability = np.empty(len(patterns), np.int64), np.empty(len(patterns))
    for rows in chunks:
        probabilities, _ = _posterior(patterns[rows], log_prior, log_confusion)
        label[rows], probability[rows] = probabilities.argmax(axis=1), probabilities.max(axis=1)
    place = place.reshape(-1)
    return DawidSkene(label[place], probability[place], np.exp(log_confusion), np.exp(log_prior))


def _shares(patterns: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Shares of the votes (P, C) by class."""
    counts = np.zeros((len(patterns), classes))
    for votes in patterns.T:
        rows = np.flatnonzero(votes >= 0)
        counts[rows, votes[rows]] += 1
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _estimate(
    prior: NDArray[np.float64], joint: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The M step: logarithms of the prior (C,) and of the confusion matrices (A, C, C), from expected counts."""
    smoothed = joint + SMOOTHING
    share = (prior + SMOOTHING) / (prior + SMOOTHING).sum()
    return np.log(share), np.log(smoothed / smoothed.sum(axis=2, keepdims=True))


def _posterior(
    patterns: NDArray[np.int64], log_prior: NDArray[np.float64], log_confusion: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The E step: probabilities (P, C) of the classes given the votes, and the votes' log-likelihoods (P,)."""
    logits = np.tile(log_prior, (len(patterns), 1))
    for votes, of_annotator in zip(patterns.T, log_confusion, strict=True):
        by_vote = np.vstack((of_annotator.T, np.zeros(len(log_prior))))  # the last row is that of no vote, -1
        logits += by_vote[votes]
    highest = logits.max(axis=1, keepdims=True)
    scaled = np.exp(logits - highest)
    total = scaled.sum(axis=1, keepdims=True)
    return scaled / total, (highest + np.log(total))[:, 0]


def _add_counts(
    prior: NDArray[np.float64],
    joint: NDArray[np.float64],
    patterns: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> None:
    """Add the expected counts of images (C,), and of pairs of true class and vote (A, C, C)."""
    expected = probabilities * weights[:, None]
    prior += expected.sum(axis=0)
    for votes, of_annotator in zip(patterns.T, joint, strict=True):
        order = np.argsort(votes, kind="stable")
        voted, starts = np.unique(votes[order], return_index=True)
        sums = np.add.reduceat(expected[order], starts, axis=0)
        of_annotator[:, voted[voted >= 0]] += sums[voted >= 0].T
