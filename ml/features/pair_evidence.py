"""What a data set's noisy labels say of DeNLL's two networks: who should answer, and which labels speak of the object.

Linear probes predict every image out of fold from three sets of fixed features: of the picture, of the object before
the mean background, and of the background alone. `ml.features.answer_rule` and `ml.features.label_evidence` draw the
conclusions. No clean label is needed, and nothing of the networks' training.

Shapes: `n` images, `D` features, `C` classes; features (n, D), log-probabilities (n, C), given labels int64 (n,).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ml.features import (
    answer_rule,
    cross_validation,
    label_evidence,
    label_noise,
    linear_probe,
    transition_estimate,
)
from ml.features.answer_rule import AnswerDecision
from ml.features.cross_validation import PLAIN, Candidate
from ml.features.label_evidence import LabelEvidence
from ml.method import NoiseEstimate

PLAIN_PROBES = (Candidate(1e-3),)  # behind L: its threshold was set with this penalty


@dataclass(frozen=True)
class PairEvidence:
    """The conclusions.

    Attributes:
        decision: Who answers.
        evidence: Which labels speak of the object.
        log_probabilities: Of the clean class, out of fold, f32 (n, C): labels are ranked by them.
        noise: How clean classes were mistaken, by which labels are ranked too; None where labels follow the background,
            which no class explains.
    """

    decision: AnswerDecision
    evidence: LabelEvidence
    log_probabilities: Tensor
    noise: NoiseEstimate | None


def gather(
    first: Tensor,
    second: Tensor,
    background: Tensor,
    labels: Tensor,
    classes: int,
    generator: torch.Generator,
    samples: torch.Generator,
    clean: tuple[Tensor, Tensor] | None = None,
) -> PairEvidence:
    """Fit the probes and conclude.

    Args:
        first: features of the pictures, (n, D).
        second: features of the objects before the mean background, (n, D).
        background: features of the backgrounds alone, (n, D).
        labels: given labels int64 (n,).
        classes: C.
        generator: draws folds.
        samples: draws bootstrap samples, for the interval of the noise rate.
        clean: log-probabilities of clean classes by g1 and g2, out of fold, if they are known already; otherwise
            forward-corrected probes estimate them.
    """

    # plain probes say whether labels follow the background
    def plain(features: Tensor) -> Tensor:
        projected = linear_probe.fit_projection(features)(features)
        validated = cross_validation.cross_validate(projected, labels, classes, PLAIN_PROBES, generator)
        return validated.logits.log_softmax(dim=1)

    decision = answer_rule.decide(plain(first), plain(second), of_background := plain(background), labels)

    # forward-corrected ones predict clean classes, so that labels are not ruled out by structured noise
    one, two = clean or tuple(
        label_noise.clean_log_probabilities(features, labels, classes, generator) for features in (first, second)
    )
    if decision.predictor == "g2":
        evidence = label_evidence.estimate(two.exp(), of_background.exp(), labels)
        return PairEvidence(decision, evidence, _posterior(two, labels, evidence), None)
    mean = _mean(one, two)
    weights = answer_rule.stack_weights(one, two, labels)
    decision = AnswerDecision(decision.statistic, "stack", weights)
    evidence = label_evidence.estimate(mean.exp(), None, labels)
    refined = transition_estimate.refine(mean, labels, transition_estimate.diagonal_start(classes).to(labels.device))
    noise = NoiseEstimate(
        refined.transition.cpu(),
        transition_estimate.noise_rate(mean, labels, refined),
        transition_estimate.noise_interval(mean, labels, refined, samples),
    )
    return PairEvidence(decision, evidence, label_noise.calibrate(mean, refined), noise)


def fold_weighted_probe(
    layer: nn.Linear, features: Tensor, labels: Tensor, weights: Tensor, generator: torch.Generator
) -> None:
    """Set a classifier to the probe of these features that counts every image by its weight.

    Args:
        layer: D -> C, is changed in place.
        features: (n, D).
        labels: given labels int64 (n,).
        weights: of the images, in [0, 1], (n,).
        generator: draws the folds by which the penalty is chosen.
    """
    projection = linear_probe.fit_projection(features)
    projected, classes = projection(features), layer.out_features
    chosen = cross_validation.cross_validate(projected, labels, classes, PLAIN, generator).candidate
    classifier = linear_probe.fit(projected, labels, classes, chosen.penalty, weights=weights)
    linear_probe.fold_into(layer, projection, classifier)


def _mean(first: Tensor, second: Tensor) -> Tensor:
    """log of the mean probabilities, f32 (n, C)."""
    return torch.stack([first, second]).float().logsumexp(dim=0) - torch.log(torch.tensor(2.0))


def _posterior(log_probabilities: Tensor, labels: Tensor, evidence: LabelEvidence) -> Tensor:
    """log P(clean class | image, given label), f32 (n, C): the label where it speaks of the object, q elsewhere."""
    weight = evidence.object_weight[:, None]
    given_label = nn.functional.one_hot(labels, log_probabilities.shape[1])
    mixed = weight * given_label + (1 - weight) * log_probabilities.float().exp()
    return mixed.clamp_min(1e-12).log()
