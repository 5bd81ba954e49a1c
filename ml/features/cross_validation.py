"""Logits of images by classifiers that did not learn from them, and the choice of the penalty by them.

A classifier fits the wrong labels that it has seen. Rankings of labels, estimates of their noise and the choice of the
penalty therefore look at images that were left out of the fit. No clean label is needed: what predicts the given labels
of other images best predicts clean ones best too.

Shapes: `N` images, `K` components, `C` classes, `P` penalties. Labels are int64 in [0, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ml.features import linear_probe, transition_estimate

FOLDS = 5
PENALTIES = (1e-3, 3e-4, 1e-4)  # L2 penalties to choose from, the strongest first
ROWS = 20_000  # images by which a penalty is chosen, where there are more


class CrossValidated(NamedTuple):
    """The result of `cross_validate`."""

    penalty: float
    logits: Tensor  # f32 (N, C), out of fold
    estimate: transition_estimate.Refined  # of T and the logits' scale


def assign_folds(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """The fold of every image, int64 (N,) in [0, folds): at random, every class spread evenly.

    Args:
        labels: Given labels (N,).
        folds: How many; with fewer images, some folds are empty.
        generator: On any device.
    """
    order = torch.randperm(len(labels), generator=generator, device=generator.device).to(labels.device)
    by_class = order[labels[order].argsort(stable=True)]  # class after class, at random within each
    assigned = torch.empty_like(labels)
    assigned[by_class] = torch.arange(len(labels), device=labels.device) % folds
    return assigned


def out_of_fold(
    projected: Tensor,
    labels: Tensor,
    classes: int,
    penalties: Sequence[float],
    folds: Tensor,
    *,
    transition: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Logits f32 (P, N, C) of every image by classifiers that did not learn from it.

    Args:
        projected, labels, classes, transition, weights: As of `linear_probe.fit`.
        penalties: One fit for each; each starts from the one before.
        folds: int64 (N,), as `assign_folds` returns them: the classifier of a fold learns from the other folds. Where
            these have no image of positive weight, logits are 0.
    """
    logits = projected.new_zeros((len(penalties), len(labels), classes))
    importance = torch.ones_like(projected[:, 0]) if weights is None else weights
    for fold in sorted(set(folds.tolist())):
        outside = folds == fold
        inside = ~outside
        if not bool((importance[inside] > 0).any()):
            continue
        x, y, of_rows, classifier = projected[inside], labels[inside], importance[inside], None
        for number, penalty in enumerate(penalties):
            classifier = linear_probe.fit(
                x, y, classes, penalty, transition=transition, weights=of_rows, start=classifier
            )
            logits[number, outside] = classifier(projected[outside])
    return logits


def cross_validate(
    projected: Tensor,
    labels: Tensor,
    classes: int,
    generator: torch.Generator,
    *,
    transition: Tensor | None = None,
    folds: int = FOLDS,
    penalties: Sequence[float] = PENALTIES,
) -> CrossValidated:
    """Choose the penalty with the best likelihood of given labels out of fold, and predict every image out of fold.

    The likelihood is that of `transition_estimate.refine`: a penalty that makes a classifier less certain is not
    preferred for that, because a scale of the logits undoes it.

    Args:
        projected, labels, classes: As of `linear_probe.fit`.
        generator: On any device.
        transition: First estimate of T (C, C); None fits plain classifiers, whose T stays the identity.
        folds: How many.
        penalties: To choose from, the strongest first. Of more than `ROWS` images, so many choose.
    """
    start = torch.eye(classes, device=projected.device) if transition is None else transition
    x, y = projected, labels
    if len(labels) > ROWS:
        drawn = torch.randperm(len(labels), generator=generator, device=generator.device)[:ROWS]
        rows = drawn.sort().values.to(labels.device)
        x, y = projected[rows], labels[rows]
    candidates = out_of_fold(x, y, classes, penalties, assign_folds(y, folds, generator), transition=transition)
    estimates = [transition_estimate.refine(logits, y, start) for logits in candidates]
    best = min(range(len(penalties)), key=lambda number: estimates[number].loss)
    logits = candidates[best]
    if len(labels) > ROWS:
        all_folds = assign_folds(labels, folds, generator)
        logits = out_of_fold(projected, labels, classes, penalties[best : best + 1], all_folds, transition=transition)[
            0
        ]
    return CrossValidated(penalties[best], logits, estimates[best])
