"""What fixed features say of given labels: how they were mistaken, which class each image probably has.

The steps, each of which gives the next a better start (`ml.features.transition_estimate` has the reasons):

1. T from the consensus of nearest neighbours.
2. A forward-corrected classifier with this T; T and the noise rate from its out-of-fold logits.
3. The same once more with the better T. Its logits rank the labels; a classifier of all images predicts.

No clean label is used. The same numbers come out on every run.

Shapes: `N` images, `D` features, `C` classes. Labels are int64 in [0, C).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ml.features import cross_validation, linear_probe, neighbours, transition_estimate
from ml.features.linear_probe import Classifier, Projection

NEIGHBOURS = 4  # of each image, whose labels are compared with its own
ROWS = 16_384  # images among which neighbours are searched, evenly spread


@dataclass(frozen=True)
class LabelNoise:
    """What is known of the given labels.

    Attributes:
        transition: T, f64 (C, C): P(given label j | clean class i), rows sum to 1.
        noise_rate: Estimated share of wrong labels, in [0, 1].
        interval: Of the noise rate: it holds the true share in most cases.
        log_probabilities: Of clean classes, f32 (N, C), by classifiers that did not learn from the image.
        projection, classifier: Of features to logits of clean classes, fitted to all images.
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
    """All three steps.

    Args:
        features: (N, D) of any floating type, at least one image.
        labels: Given labels (N,).
        classes: C.
        generator: Draws folds; on any device.
        components: Of the features, at most.
        folds: Parts of the images that are left out in turn.
    """
    projection = linear_probe.fit_projection(features, components)
    projected = projection(features)
    first = consensus(projected, labels, classes)
    second = cross_validation.cross_validate(projected, labels, classes, generator, transition=first, folds=folds)
    transition = second.estimate.transition
    third = cross_validation.cross_validate(projected, labels, classes, generator, transition=transition, folds=folds)
    noise = transition_estimate.noise_rate(third.logits, labels, third.estimate, generator)
    return LabelNoise(
        transition=third.estimate.transition,
        noise_rate=noise.rate,
        interval=noise.interval,
        log_probabilities=(third.estimate.scale * third.logits).log_softmax(dim=1),
        projection=projection,
        classifier=linear_probe.fit(projected, labels, classes, third.penalty, transition=transition),
    )


def consensus(projected: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The first estimate of T, f64 (C, C), from images whose projected features (N, K) are close."""
    rows = neighbours.spread(len(labels), ROWS).to(labels.device)
    x, y = projected[rows], labels[rows]
    votes = functional.one_hot(y, classes)
    if (count := min(NEIGHBOURS, len(rows) - 1)) > 0:
        near = neighbours.nearest(x, x, count, own=torch.arange(len(rows), device=x.device))
        votes = votes + neighbours.votes(near.positions, y, classes)
    return transition_estimate.from_consensus(votes)[0]
