"""Logits of images by classifiers that did not learn from them, and the choice of a classifier by them.

A classifier fits the wrong labels that it has seen. Rankings of labels, estimates of their noise and the choice of a
penalty therefore look at images that were left out of the fit. No clean label is needed: what explains the given labels
of other images best predicts clean ones best too.

Shapes: `N` images, `K` components, `C` classes. Labels are int64 in [0, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ml.features import linear_probe, transition_estimate
from ml.features.linear_probe import Classifier

FOLDS = 5
PENALTIES = (1e-3, 3e-4, 1e-4)  # L2, to choose from
ROWS = 10_000  # images that choose, where there are more


@dataclass(frozen=True)
class Candidate:
    """A way to fit a classifier.

    Attributes:
        penalty: L2.
        transition: T (C, C) of the forward correction; None fits a plain classifier.
    """

    penalty: float
    transition: Tensor | None = None

    def fit(self, projected: Tensor, labels: Tensor, classes: int, start: Classifier | None = None) -> Classifier:
        """The classifier; arguments as of `linear_probe.fit`."""
        return linear_probe.fit(projected, labels, classes, self.penalty, transition=self.transition, start=start)


PLAIN = tuple(Candidate(penalty) for penalty in PENALTIES)


class CrossValidated(NamedTuple):
    """The result of `cross_validate`."""

    candidate: Candidate
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
    candidate: Candidate,
    folds: Tensor,
    fitted: dict[int, Classifier] | None = None,
) -> Tensor:
    """Logits f32 (N, C) of every image by a classifier that did not learn from it.

    Args:
        projected, labels, classes: As of `linear_probe.fit`.
        candidate: How it is fitted.
        folds: int64 (N,), as `assign_folds` returns them: the classifier of a fold learns from the other folds. If
            there is no other, logits are 0.
        fitted: Classifiers of these folds by another candidate, from which the search begins; those of this candidate
            take their place.
    """
    fitted = {} if fitted is None else fitted
    logits = projected.new_zeros((len(labels), classes))
    for fold in sorted(set(folds.tolist())):
        outside = folds == fold
        inside = ~outside
        if bool(inside.any()):
            fitted[fold] = candidate.fit(projected[inside], labels[inside], classes, fitted.get(fold))
            logits[outside] = fitted[fold](projected[outside])
    return logits


def cross_validate(
    projected: Tensor,
    labels: Tensor,
    classes: int,
    candidates: Sequence[Candidate],
    generator: torch.Generator,
    folds: int = FOLDS,
) -> CrossValidated:
    """The candidate with the best likelihood of given labels out of fold, and its logits of every image out of fold.

    The likelihood is that of `transition_estimate.refine`: a penalty that makes a classifier less certain is not
    preferred for that, because a scale of the logits undoes it.

    Args:
        projected, labels, classes: As of `linear_probe.fit`.
        candidates: At least one. Of more than `ROWS` images, so many choose.
        generator: Draws folds; on any device.
        folds: How many.
    """
    rows = torch.arange(len(labels), device=labels.device)
    if len(labels) > ROWS:
        drawn = torch.randperm(len(labels), generator=generator, device=generator.device)[:ROWS]
        rows = drawn.sort().values.to(labels.device)
    x, y = projected[rows], labels[rows]
    parts = assign_folds(y, folds, generator)
    identity = torch.eye(classes, device=projected.device)

    best: CrossValidated | None = None
    fitted: dict[int, Classifier] = {}
    for candidate in candidates:
        logits = out_of_fold(x, y, classes, candidate, parts, fitted)
        estimate = transition_estimate.refine(
            logits, y, identity if candidate.transition is None else candidate.transition
        )
        if best is None or estimate.loss < best.estimate.loss:
            best = CrossValidated(candidate, logits, estimate)
    assert best is not None
    if len(labels) > ROWS:
        all_parts = assign_folds(labels, folds, generator)
        best = best._replace(logits=out_of_fold(projected, labels, classes, best.candidate, all_parts))
    return best
