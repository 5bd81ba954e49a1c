"""What fixed features say of given labels: how they were mistaken, which class each image probably has.

The steps, each of which gives the next a better start (`ml.features.transition_estimate` has the reasons):

1. T from the consensus of nearest neighbours; starts with fewer mistakes, since consensus overestimates: the more, the
   weaker the features and the fewer the images; and the consensus of more neighbours, since with half of the labels
   wrong that of few can take two classes for one.
2. Forward-corrected classifiers with these T. The given labels say which explains them best out of fold, and how T is
   refined; with the refined T the fit is repeated for as long as it explains them better. Of few images folds are drawn
   several times, and the mean of the logits is taken.
3. Three predictions of an image, none of which has learned its own label, are multiplied: that of the classifiers out
   of fold, that of a linear discriminant of the probable classes (`ml.features.discriminant`), and the probable classes
   of its neighbours. T, noise rate and the ranking of labels are those of this product.

No clean label is used. The same numbers come out on every run. Beyond `cross_validation.ROWS` images a part of them
chooses, and beyond `REFERENCES` a part of them is searched for neighbours.

Shapes: `N` images, `D` features, `K` components, `C` classes. Labels are int64 in [0, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ml.data import image_store
from ml.features import cross_validation, discriminant, linear_probe, neighbours, transition_estimate
from ml.features.cross_validation import Candidate, CrossValidated
from ml.features.linear_probe import Classifier, Projection
from ml.features.transition_estimate import Refined

CONSENSUS_NEIGHBOURS = 4  # of each image, whose labels are compared with its own
REFERENCES = 16_384  # images among which neighbours are searched, evenly spread
# Neighbours of each image that agree on a T, and the share of its mistakes.
STARTS = ((4, 1.0), (4, 0.8), (4, 0.5), (4, 0.25), (8, 1.0))
ROUNDS = 2  # of fits with a refined T
REPEATED_IMAGES = 8000  # in all draws of folds: few images are ranked by whom they were drawn with
MOST_DRAWS = 20  # of folds
NEIGHBOURS = 10  # of each image, whose probable classes are averaged
NEIGHBOUR_WEIGHT = 0.6  # of their logarithm: best likelihood of given labels on four development sets
DISCRIMINANT_IMAGES = 2000  # where the discriminant's logarithm weighs one half: it needs more images than the others
CORRECTED_PENALTY = 3e-4  # of the classifier of corrected labels: that of a clean set of some thousands
LEAST_SHARE = 0.01  # of neighbours in a class: they exclude none
LARGEST_GAP = 25.0  # between the logarithms of the two likeliest classes: beyond it posteriors round to 1 and tie


@dataclass(frozen=True)
class LabelNoise:
    """What is known of the given labels.

    Attributes:
        transition: T, f64 (C, C): P(given label j | clean class i), rows sum to 1.
        noise_rate: Estimated share of wrong labels, in [0, 1].
        interval: Of the noise rate: it holds the true share of wrong labels in most cases.
        log_probabilities: Of clean classes, f32 (N, C), from nothing that has learned the image's own label.
        projection, classifier: Of features to calibrated logits of clean classes, fitted to all images.
    """

    transition: Tensor
    noise_rate: float
    interval: tuple[float, float]
    log_probabilities: Tensor
    projection: Projection
    classifier: Classifier


def estimate(
    features: Tensor,
    labels: Tensor,
    classes: int,
    generator: torch.Generator,
    *,
    components: int = linear_probe.COMPONENTS,
    folds: int = cross_validation.FOLDS,
) -> LabelNoise:
    """All three steps, and the noise rate.

    Args:
        features: (N, D) of any floating type, at least one image.
        labels: Given labels (N,).
        classes: C.
        generator: Draws folds and bootstrap samples; on any device.
        components: Of the features, at most.
        folds: Parts of the images that are left out in turn.
    """
    projection, projected, best, logits, refined = _fit_clean(features, labels, classes, generator, components, folds)
    posterior = transition_estimate.log_posterior(logits, labels, refined).exp()
    return LabelNoise(
        transition=refined.transition,
        noise_rate=float(1 - posterior.gather(1, labels[:, None]).mean()),
        interval=transition_estimate.noise_interval(logits, labels, refined, generator),
        log_probabilities=calibrate(logits, refined),
        projection=projection,
        classifier=_final(projected, labels, classes, best, posterior),
    )


def clean_log_probabilities(features: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """`LabelNoise.log_probabilities` alone; arguments as of `estimate`."""
    *_, logits, refined = _fit_clean(
        features, labels, classes, generator, linear_probe.COMPONENTS, cross_validation.FOLDS
    )
    return calibrate(logits, refined)


class _CleanFit(NamedTuple):
    """What steps 1 to 3 leave."""

    projection: Projection
    projected: Tensor  # (N, K)
    best: CrossValidated
    logits: Tensor  # of clean classes, (N, C), from nothing that has learned the image's own label
    refined: Refined


def _fit_clean(
    features: Tensor, labels: Tensor, classes: int, generator: torch.Generator, components: int, folds: int
) -> _CleanFit:
    """Steps 1 to 3."""
    projection = linear_probe.fit_projection(features, components)
    projected = projection(features)
    best = _fit(projected, labels, classes, generator, folds)
    best = _repeat(projected, labels, classes, best, generator, folds)
    logits, refined = _multiply(projected, labels, best, generator)
    return _CleanFit(projection, projected, best, logits, refined)


def calibrate(logits: Tensor, refined: Refined) -> Tensor:
    """Calibrated log-probabilities f32 (N, C); as much less certain as it takes to tell the most certain labels apart.

    Args:
        logits: (N, C), as of `transition_estimate.refine`.
        refined: Their scale.
    """
    scaled = refined.scale * logits
    if scaled.shape[1] > 1:
        largest, second = scaled.topk(2, dim=1).values.unbind(dim=1)
        scaled *= LARGEST_GAP / max(float((largest - second).max()), LARGEST_GAP)
    return scaled.log_softmax(dim=1).float()


def consensus(projected: Tensor, labels: Tensor, classes: int, most: int = CONSENSUS_NEIGHBOURS) -> Tensor:
    """A first estimate of T, f64 (C, C), from images and at most so many neighbours by projected features (N, K)."""
    rows = image_store.evenly(len(labels), REFERENCES).to(labels.device)
    x, y = projected[rows], labels[rows]
    votes = functional.one_hot(y, classes).float()
    if (count := min(most, len(rows) - 1)) > 0:
        near = neighbours.nearest(x, x, count, own=torch.arange(len(rows), device=x.device))
        votes = votes + neighbours.votes(near.positions, y, classes)
    return transition_estimate.from_consensus(votes)[0]


def _fit(projected: Tensor, labels: Tensor, classes: int, generator: torch.Generator, folds: int) -> CrossValidated:
    """The classifier that explains given labels best out of fold."""

    def cross_validate(transitions: list[Tensor]) -> CrossValidated:
        candidates = [
            Candidate(penalty, transition) for transition in transitions for penalty in cross_validation.PENALTIES
        ]
        return cross_validation.cross_validate(projected, labels, classes, candidates, generator, folds)

    agreed = {most: consensus(projected, labels, classes, most) for most in {most for most, _ in STARTS}}
    identity = torch.eye(classes, dtype=torch.float64, device=projected.device)
    best = cross_validate([torch.lerp(identity, agreed[most], share) for most, share in STARTS])
    for _ in range(ROUNDS):
        again = cross_validate([best.estimate.transition])
        if again.estimate.loss >= best.estimate.loss:
            break
        best = again
    return best


def _final(projected: Tensor, labels: Tensor, classes: int, fitted: CrossValidated, posterior: Tensor) -> Classifier:
    """The mean of two classifiers of all images: forward-corrected; and plain, of the most probable clean classes.

    Args:
        projected, labels, classes: As of `linear_probe.fit`.
        fitted: How the first is fitted.
        posterior: P(clean class | image, given label), (N, C); an image counts by the largest.
    """
    forward = fitted.candidate.fit(projected, labels, classes)
    certainty, likely = posterior.max(dim=1)
    corrected = linear_probe.fit(projected, likely, classes, CORRECTED_PENALTY, weights=certainty)
    scale = fitted.estimate.scale / 2
    return Classifier(scale * (forward.weight + corrected.weight), scale * (forward.bias + corrected.bias))


def _repeat(
    projected: Tensor, labels: Tensor, classes: int, fitted: CrossValidated, generator: torch.Generator, folds: int
) -> CrossValidated:
    """`fitted` with mean logits over more draws of folds, where images are few."""
    draws = min(MOST_DRAWS, REPEATED_IMAGES // len(labels))
    if draws <= 1:
        return fitted
    logits = fitted.logits.clone()
    for _ in range(draws - 1):
        parts = cross_validation.assign_folds(labels, folds, generator)
        logits += cross_validation.out_of_fold(projected, labels, classes, fitted.candidate, parts)
    logits /= draws
    estimate = transition_estimate.refine(logits, labels, fitted.estimate.transition)
    return fitted._replace(logits=logits, estimate=estimate)


def _multiply(
    projected: Tensor, labels: Tensor, fitted: CrossValidated, generator: torch.Generator
) -> tuple[Tensor, Refined]:
    """Step 3: logits f64 (N, C) of clean classes, and T and their scale."""
    start = fitted.estimate.transition
    own = (fitted.estimate.scale * fitted.logits.double()).log_softmax(dim=1)

    # Probable classes, by the classifiers and neighbours, are what the discriminant learns
    posterior = transition_estimate.log_posterior(fitted.logits, labels, fitted.estimate).exp()
    logits = own + NEIGHBOUR_WEIGHT * _of_neighbours(projected, posterior)
    posterior = transition_estimate.log_posterior(
        logits, labels, transition_estimate.refine(logits, labels, start)
    ).exp()
    parts = cross_validation.assign_folds(labels, discriminant.FOLDS, generator)
    discriminating = discriminant.out_of_fold(projected, posterior, parts)
    scale = transition_estimate.refine(discriminating, labels, start).scale

    weight = len(labels) / (len(labels) + DISCRIMINANT_IMAGES)
    # Neighbours by the mean of two cosines: as they are, and where directions within classes count little
    whitened = discriminant.fit(discriminant.gather(projected, posterior)).whiten(projected)
    coordinates = torch.cat([functional.normalize(part, dim=1) for part in (projected, whitened)], dim=1)
    logits = (
        own
        + weight * (scale * discriminating).log_softmax(dim=1)
        + NEIGHBOUR_WEIGHT * _of_neighbours(coordinates, posterior)
    )
    return logits, transition_estimate.refine(logits, labels, start)


def _of_neighbours(coordinates: Tensor, posterior: Tensor) -> Tensor:
    """log of the mean of `posterior` (N, C) over each image's neighbours by the angle of coordinates (N, K)."""
    count_all = len(posterior)
    references = image_store.evenly(count_all, REFERENCES).to(posterior.device)
    mean = torch.zeros_like(posterior)
    if (count := min(NEIGHBOURS, len(references) - 1)) < 1:
        return mean
    position = torch.full((count_all,), -1, device=posterior.device)
    position[references] = torch.arange(len(references), device=posterior.device)
    near = neighbours.nearest(coordinates, coordinates[references], count, own=position).positions
    of_references = posterior[references]
    for column in near.t():  # one neighbour at a time: (N, k, C) of all may be large
        mean += of_references[column] / count
    return (mean + LEAST_SHARE).log()
