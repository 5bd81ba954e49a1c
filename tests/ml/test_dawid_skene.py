"""Dawid and Skene's EM: the same as written out image by image; better than the majority where annotators differ."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ml.data import dawid_skene
from ml.formats.votes import majority

MISSING = -1


def draw(
    accuracies: tuple[float, ...], images: int, classes: int, voted: float = 1.0, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True classes (N,) and votes (N, A) of annotators that err uniformly; each votes on a share of the images."""
    generator = np.random.default_rng(seed)
    true = generator.integers(classes, size=images)
    votes = np.empty((images, len(accuracies)), np.int64)
    for annotator, accuracy in enumerate(accuracies):
        wrong = (true + generator.integers(1, classes, size=images)) % classes
        votes[:, annotator] = np.where(generator.random(images) < accuracy, true, wrong)
        votes[generator.random(images) >= voted, annotator] = MISSING
    return true, votes[(votes >= 0).any(axis=1)] if voted < 1 else votes


def image_by_image(votes: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Probabilities (N, C) by the equations of the paper (2.3 to 2.5), smoothed as the module does."""
    images, annotators = votes.shape
    probabilities = np.zeros((images, classes))
    for i in range(images):
        for vote in votes[i][votes[i] >= 0]:
            probabilities[i, vote] += 1 / (votes[i] >= 0).sum()
    likelihood = -np.inf
    for _ in range(dawid_skene.ITERATIONS + 1):
        prior = probabilities.sum(axis=0) + dawid_skene.SMOOTHING
        prior /= prior.sum()
        confusion = np.full((annotators, classes, classes), dawid_skene.SMOOTHING)
        for i, a in zip(*np.nonzero(votes >= 0), strict=True):
            confusion[a, :, votes[i, a]] += probabilities[i]
        confusion /= confusion.sum(axis=2, keepdims=True)
        evidence = np.empty(images)
        for i in range(images):
            joint = prior.copy()
            for a in np.flatnonzero(votes[i] >= 0):
                joint *= confusion[a, :, votes[i, a]]
            evidence[i] = joint.sum()
            probabilities[i] = joint / joint.sum()
        gain, likelihood = np.log(evidence).mean() - likelihood, np.log(evidence).mean()
        if gain < dawid_skene.TOLERANCE:
            break
    prior = probabilities.sum(axis=0) + dawid_skene.SMOOTHING
    confusion = np.full((annotators, classes, classes), dawid_skene.SMOOTHING)
    for i, a in zip(*np.nonzero(votes >= 0), strict=True):
        confusion[a, :, votes[i, a]] += probabilities[i]
    confusion /= confusion.sum(axis=2, keepdims=True)
    final = np.tile(prior / prior.sum(), (images, 1))
    for i in range(images):
        for a in np.flatnonzero(votes[i] >= 0):
            final[i] *= confusion[a, :, votes[i, a]]
    result: NDArray[np.float64] = final / final.sum(axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("chunk", [dawid_skene.CHUNK, 40])
def test_the_estimate_is_that_of_the_equations(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Equal votes counted together, chunks, and missing votes left out: nothing of it changes a number."""
    monkeypatch.setattr(dawid_skene, "CHUNK", chunk)
    _, votes = draw((0.9, 0.6, 0.7), images=150, classes=4, voted=0.7, seed=3)
    assert (votes == MISSING).any()

    fitted = dawid_skene.fit(votes, 4)
    expected = image_by_image(votes, 4)

    assert fitted.label.tolist() == expected.argmax(axis=1).tolist()
    assert fitted.probability == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert fitted.confusion.sum(axis=2) == pytest.approx(1.0)
    assert fitted.prior.sum() == pytest.approx(1.0)


def test_one_reliable_annotator_outweighs_two_poor_ones() -> None:
    accuracies = (0.55, 0.95, 0.5)
    true, votes = draw(accuracies, images=4000, classes=3)
    fitted = dawid_skene.fit(votes, 3)
    by_majority = np.array([majority([str(vote) for vote in row]) for row in votes]).astype(np.int64)

    assert (fitted.label == true).mean() > (by_majority == true).mean() + 0.1
    estimated = [float(np.diag(of_annotator).mean()) for of_annotator in fitted.confusion]
    assert estimated == pytest.approx(accuracies, abs=0.05)


def test_votes_that_agree_are_kept_and_one_vote_is_enough() -> None:
    votes = np.array([[0, 0], [1, 1], [0, MISSING], [MISSING, 1], [1, 1], [0, 0]])
    fitted = dawid_skene.fit(votes, 2)

    assert fitted.label.tolist() == [0, 1, 0, 1, 1, 0]
    assert (fitted.probability > 0.9).all()
