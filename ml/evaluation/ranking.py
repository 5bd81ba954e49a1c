"""Ranks given labels by how likely they are wrong, from the logits of one training while it learns.

Where a method knows the transition matrix, and has recorded calibrated logits of clean classes that did not learn the
label itself, a label's score is its posterior probability (`ml.evaluation.label_posterior`), and a label loses if
images with similar predictions probably have another class.

Elsewhere a label's score is its margin: how far its logit lies above the best other logit, averaged over epochs (area
under the margin, Pleiss et al. 2020). Four things are added; `docs/evidence/ranking.md` measures each of them.

- Class thresholds. A share of its class's mean logit is taken off every logit, as confident learning compares
  probabilities with the mean confidence of their class (Northcutt et al. 2021). A class that the network
  overpredicts must have larger logits to count.
- Epoch weights. An epoch weighs more the later it is and the fewer given labels the network fits: early epochs know
  little, and epochs that fit every label have memorised the wrong ones too.
- Held-out calibration. Margins of images that were not trained on are put on the scale of the others.
- Nearest-neighbour agreement. A label loses if images with similar predictions have other labels.

No clean label is used, and no method is known here.

Shapes: `N` training images, `B` batch, `C` classes. Labels are int64 in [0, C), logits and probabilities (B, C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ml.evaluation import label_posterior
from ml.method import NoiseEstimate

THRESHOLD_SHARE = 0.75  # of a class's mean logit that is taken off its logits: best on the mean of four data sets
WEIGHT_EXPONENT = 4.0  # of an epoch's weight
LEAST_UNFITTED = 1e-3  # share of labels: epochs that fit all labels still have a weight
AGREEMENT_WEIGHT = 0.5  # of the neighbours' votes, in standard deviations of margins or log odds
NEIGHBOURS = 30  # of each image
REFERENCES = 8192  # images among which neighbours are searched, evenly spread
MOST_UNEXPLAINED = 0.3  # of the labels estimated to be right are not predicted; docs/evidence/noise_estimates.md
INTERVAL_DEVIATIONS = 1.96  # of a share of held-out labels: 95 %
CHUNK = 1024  # images whose neighbours are searched at a time
LEAST_PROBABILITY = 1e-12  # of a label, so that its log odds stay finite
LARGEST_LOGIT = 1e4  # logits of a network that is about to diverge are cut here, so that sums stay finite

Vector = NDArray[np.float64]


class MarginSums(NamedTuple):
    """Weighted sums over the passes that showed each label; divided by `weights` they are means."""

    margins: Tensor  # f32 (N,)
    probabilities: Tensor  # f32 (N, C)
    weights: Tensor  # f32 (N,)

    @classmethod
    def zeros(cls, count: int, classes: int, device: torch.device) -> MarginSums:
        """Of `count` labels that no pass has shown."""
        return cls(*(torch.zeros(shape, device=device) for shape in (count, (count, classes), count)))


class MarginTracker:
    """Accumulates margins and probabilities of every given label over the epochs of a training."""

    def __init__(self, labels: Tensor, classes: int) -> None:
        """Start empty.

        Args:
            labels: Given labels int64 (N,), on the training's device.
            classes: C.
        """
        device = labels.device
        self._labels, self._classes = labels, classes
        self.sums = MarginSums.zeros(len(labels), classes, device)  # of the epochs that have ended, weighted
        self.epochs = 0  # that recorded logits and have ended
        self.has_recorded = False  # whether this epoch has recorded logits so far
        self._epoch_sums = MarginSums.zeros(len(labels), classes, device)  # of this epoch
        # Per class, over the images with that given label: the mean of its logit in the last epoch.
        self._class_means = torch.zeros(classes, device=device)
        # The same of this epoch: sum of the logit, number of images, number of images whose margin is positive.
        self._class_sums = torch.zeros(3, classes, device=device)

    def record_logits(self, rows: Tensor, logits: Tensor) -> None:
        """Add one batch; does not wait for the device.

        Args:
            rows: int64 (B,), positions of the images among the labels; no position twice.
            logits: (B, C), of plain images.
        """
        self.has_recorded = True
        logits = logits.detach().float().clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
        is_given = (self._labels[rows][:, None] == torch.arange(self._classes, device=logits.device)).float()
        adjusted = logits - THRESHOLD_SHARE * self._class_means
        margins = (is_given * adjusted).sum(dim=1) - adjusted.masked_fill(is_given.bool(), -torch.inf).amax(dim=1)
        self._class_sums += torch.stack([is_given * logits, is_given, is_given * (margins > 0)[:, None]]).sum(dim=1)
        self._epoch_sums.margins[rows] += margins
        self._epoch_sums.probabilities[rows] += adjusted.softmax(dim=1)
        self._epoch_sums.weights[rows] += 1

    def end_epoch(self) -> None:
        """Add the epoch's sums with its weight, (number of the epoch * share of labels it does not fit) ** exponent."""
        if not self.has_recorded:
            return
        logit_sums, counts, fitted = self._class_sums
        self._class_means.copy_(torch.where(counts > 0, logit_sums / counts.clamp(min=1), self._class_means))
        self.epochs += 1
        self.has_recorded = False
        unfitted = (1 - fitted.sum() / counts.sum()).clamp(min=LEAST_UNFITTED)
        weight = (self.epochs * unfitted) ** WEIGHT_EXPONENT
        for total, of_epoch in zip(self.sums, self._epoch_sums, strict=True):
            total.add_(weight * of_epoch)
            of_epoch.zero_()
        self._class_sums.zero_()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON that `restore` takes. The names are those of the checkpoint format."""
        tensors = {"standards": self._class_means, "own": self._class_sums, **self.sums._asdict()}
        tensors |= {f"now_{name}": tensor for name, tensor in self._epoch_sums._asdict().items()}
        return tensors, {"epochs": self.epochs, "ranking": self.has_recorded}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Continue from a `state`; KeyError if it lacks an entry."""
        copies = {name: tensor.to(self._labels.device, copy=True) for name, tensor in tensors.items()}
        self._class_means, self._class_sums = copies["standards"], copies["own"]
        self.sums = MarginSums(*(copies[name] for name in MarginSums._fields))
        self._epoch_sums = MarginSums(*(copies[f"now_{name}"] for name in MarginSums._fields))
        self.epochs, self.has_recorded = facts["epochs"], facts["ranking"]


@dataclass(frozen=True)
class LabelIssues:
    """The ranking of every given label, in cleanlab's words."""

    label_score: Vector  # (N,) in [0, 1], low is suspicious
    predicted_label: NDArray[np.int64]  # (N,)
    is_label_issue: NDArray[np.bool_]  # (N,)
    noise_rate: float  # estimated share of wrong labels, in [0, 1]
    transition: Vector  # (C, C), estimated P(given label j | likely class i); rows sum to 1
    pred_probs: Vector  # (N, C), of classes, from the image alone; rows sum to 1
    class_probs: Vector  # (N, C), by which classes are suggested: what the given label says included, where it is known
    noise_interval: tuple[float, float] | None = None  # of the noise rate, where it is known
    held_out_agreement: float | None = None  # share of held-out labels that are predicted; None where it says nothing

    @property
    def withheld_reason(self) -> str | None:
        """Why the noise rate should not be told: the model is too weak. None where it can be believed.

        A model that predicts few held-out labels makes mistakes of its own, which cannot be told from wrong labels.
        """
        right = 1 - self.noise_rate
        if self.held_out_agreement is None or right - self.held_out_agreement <= MOST_UNEXPLAINED * right:
            return None
        return (
            f"The model predicts only {self.held_out_agreement:.0%} of the held-out labels: its own mistakes cannot be "
            "told from wrong labels. Train longer, or from pretrained weights."
        )


def label_issues(
    labels: Tensor,
    tracker: MarginTracker,
    held_out: Tensor | None = None,
    noise: NoiseEstimate | None = None,
    confirmed: Tensor | None = None,
) -> LabelIssues | None:
    """Rank the given labels and flag those that are probably wrong.

    Args:
        labels: Given labels int64 (N,), those that `tracker` was made with.
        tracker: Margins and probabilities of the epochs so far.
        held_out: Rows int64 that were not trained on; their margins are calibrated to those of the others.
        noise: What the method knows of the noise; None ranks by margins.
        confirmed: bool (N,), labels that a person has confirmed: their score is 1 and they are never flagged.

    Returns:
        The ranking, or None if no epoch has ended. The number of issues is the noise rate times N, less those whose
        label is the predicted one. The noise rate is that of `noise`, or estimated by `soft_confident_joint`.
    """
    if not tracker.epochs:
        return None

    # Means over the epochs; rows that no epoch has shown have zeros.
    given_labels = labels.cpu().numpy()
    margin_sums, probability_sums, weights = (total.double().cpu().numpy() for total in tracker.sums)
    recorded = weights > 0
    divisors = np.where(recorded, weights, 1.0)
    margins, pred_probs = margin_sums / divisors, probability_sums / divisors[:, None]

    is_confirmed = np.zeros(len(given_labels), dtype=bool) if confirmed is None else confirmed.cpu().numpy()

    if noise is not None:
        issues = _by_posterior(given_labels, pred_probs, recorded, noise, is_confirmed)
        return replace(issues, held_out_agreement=held_out_agreement(given_labels, pred_probs, held_out))

    # Held-out calibration comes before agreement, which is scaled by the spread of all margins.
    if held_out is not None and 0 < len(held_out) < len(given_labels):
        margins = calibrate_held_out(margins, held_out.cpu().numpy())
    if recorded.any():
        one_hot = np.eye(pred_probs.shape[1])[given_labels[recorded]]
        agreement = neighbour_agreement(given_labels[recorded], pred_probs[recorded], one_hot)
        margins[recorded] += AGREEMENT_WEIGHT * agreement * margins[recorded].std()
        margins[~recorded] = np.median(margins[recorded])  # nothing is known of them: the middle of the ranking
    margins[is_confirmed] = np.inf

    # So many of the lowest margins are issues as the estimated noise rate says.
    predicted = np.where(recorded, pred_probs.argmax(axis=1), given_labels)
    joint = soft_confident_joint(given_labels, pred_probs)
    noise_rate = float(joint.sum() - np.trace(joint)) / len(given_labels)
    predicted_share = held_out_agreement(given_labels, pred_probs, held_out)
    return LabelIssues(
        label_score=_sigmoid(margins),
        predicted_label=predicted,
        is_label_issue=_lowest(margins, noise_rate) & (predicted != given_labels) & ~is_confirmed,
        noise_rate=noise_rate,
        transition=transition_matrix(joint),
        pred_probs=_uniform_where(~recorded, pred_probs),
        class_probs=_uniform_where(~recorded, pred_probs),
        noise_interval=None
        if predicted_share is None or held_out is None
        else noise_interval(noise_rate, predicted_share, len(held_out)),
        held_out_agreement=predicted_share,
    )


def _by_posterior(
    labels: NDArray[np.int64],
    pred_probs: Vector,
    recorded: NDArray[np.bool_],
    noise: NoiseEstimate,
    is_confirmed: NDArray[np.bool_],
) -> LabelIssues:
    """The ranking by posterior probability; labels that no epoch has shown are in the middle of it."""
    of_classes = label_posterior.posterior(labels, pred_probs, noise.transition.numpy())
    score = np.empty(len(labels))
    if recorded.any():
        score[recorded] = posterior_score(labels[recorded], pred_probs[recorded], of_classes[recorded])
        score[~recorded] = np.median(score[recorded])
    score[is_confirmed] = 1.0
    predicted = np.where(recorded, of_classes.argmax(axis=1), labels)
    return LabelIssues(
        label_score=score,
        predicted_label=predicted,
        is_label_issue=_lowest(score, noise.noise_rate) & (predicted != labels) & ~is_confirmed,
        noise_rate=noise.noise_rate,
        transition=noise.transition.numpy(),
        pred_probs=_uniform_where(~recorded, pred_probs),
        class_probs=_uniform_where(~recorded, of_classes),
        noise_interval=noise.interval,
    )


def posterior_score(labels: NDArray[np.int64], pred_probs: Vector, of_classes: Vector) -> Vector:
    """How far each label is believed, in [0, 1], (N,): the log odds of its posterior, and what its neighbours say.

    Neighbours vote by their posterior: where one class is mistaken for another, as many of their given labels may be
    wrong in the same way as are right.

    Args:
        labels: Given labels (N,).
        pred_probs: Of clean classes, (N, C).
        of_classes: Their posterior, (N, C).
    """
    right = of_classes[np.arange(len(labels)), labels].clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    odds = np.log(right) - np.log1p(-right)
    return _sigmoid(odds + AGREEMENT_WEIGHT * odds.std() * neighbour_agreement(labels, pred_probs, of_classes))


def _uniform_where(rows: NDArray[np.bool_], probabilities: Vector) -> Vector:
    """Probabilities (N, C) that are equal in some rows: nothing is known of these images."""
    return np.where(rows[:, None], 1 / probabilities.shape[1], probabilities)


def _lowest(score: Vector, share: float) -> NDArray[np.bool_]:
    """Which rows are among so many of the lowest scores."""
    lowest = np.zeros(len(score), dtype=bool)
    lowest[np.argsort(score, kind="stable")[: round(share * len(score))]] = True
    return lowest


def neighbour_agreement(labels: NDArray[np.int64], pred_probs: Vector, votes: Vector) -> Vector:
    """How well each label agrees with the votes of the images that have the most similar predictions.

    The log odds of a class are log(its share of the nearest neighbours' votes / its share of all votes). An image's
    agreement is the log odds of its own label minus the largest of another class. Similarity is the Bhattacharyya
    coefficient of predicted probabilities.

    Args:
        labels: Given labels (N,).
        pred_probs: (N, C).
        votes: Of the images for classes, (N, C): 1 for the given label, or probabilities.

    Returns:
        float64 (N,), standardised to mean 0 and deviation 1. Zeros where there are no more than `NEIGHBOURS` images,
        a single class, or no differences.
    """
    classes = np.union1d(np.flatnonzero(votes.any(axis=0)), labels)
    references = np.linspace(0, len(labels) - 1, min(len(labels), REFERENCES)).round().astype(np.int64)
    if len(references) <= NEIGHBOURS or len(classes) < 2:
        return np.zeros(len(labels))
    roots = torch.from_numpy(np.sqrt(pred_probs)).float()  # their inner product is the Bhattacharyya coefficient
    numbers = torch.from_numpy(np.searchsorted(classes, labels))
    reference_votes = torch.from_numpy(votes[references][:, classes]).float()
    class_share = (torch.from_numpy(votes.sum(axis=0)[classes]).float() / len(labels)).clamp_min(LEAST_PROBABILITY)
    chunks = []
    for rows in torch.split(torch.arange(len(labels)), CHUNK):
        similarity = roots[rows] @ roots[references].t()
        similarity[rows[:, None] == torch.from_numpy(references)] = -1.0  # an image is not its own neighbour
        neighbour_share = reference_votes[similarity.topk(NEIGHBOURS, dim=1).indices].mean(dim=1)
        odds = torch.log((neighbour_share + 1 / NEIGHBOURS) / class_share)  # smoothed by one vote
        own = odds.gather(1, numbers[rows, None])
        chunks.append(own[:, 0] - odds.scatter(1, numbers[rows, None], -torch.inf).amax(dim=1))
    agreement: Vector = torch.cat(chunks).double().numpy()
    deviation = float(agreement.std())
    return (agreement - agreement.mean()) / deviation if deviation > 0 else np.zeros(len(labels))


def calibrate_held_out(margins: Vector, held_out: NDArray[np.int64]) -> Vector:
    """Shift and scale the margins of held-out images to the median and quartile distance of the others.

    Training does not pull the margin of a held-out image towards its label, so these margins are lower and wider.

    Args:
        margins: (N,).
        held_out: Rows that were not trained on; at least one row, and not all.

    Returns:
        (N,); margins of images that were trained on are unchanged. Where one of the two quartile distances is 0,
        held-out margins are shifted only.
    """
    is_held_out = np.zeros(len(margins), dtype=bool)
    is_held_out[held_out] = True
    (low, median, high), (held_low, held_median, held_high) = (
        np.quantile(margins[part], (0.25, 0.5, 0.75)) for part in (~is_held_out, is_held_out)
    )
    scale = (high - low) / (held_high - held_low) if high > low and held_high > held_low else 1.0
    return np.where(is_held_out, (margins - held_median) * scale + median, margins)


def soft_confident_joint(labels: NDArray[np.int64], pred_probs: Vector) -> Vector:
    """Expected counts of (given label i, likely class j).

    Where the predicted class differs from the label, it counts with its probability, and the label's class with the
    rest; otherwise the label's class counts 1. The hard counts of confident learning (Northcutt et al. 2021) are
    larger: they take most labels that a weak network is unsure of for wrong.

    Args:
        labels: Given labels (N,).
        pred_probs: (N, C).

    Returns:
        (C, C), summing to N.
    """
    rows, classes = np.arange(len(labels)), pred_probs.shape[1]
    predicted = pred_probs.argmax(axis=1)
    p_noisy = np.where(predicted == labels, 0.0, pred_probs[rows, predicted])
    joint = np.zeros((classes, classes))
    np.add.at(joint, (labels, predicted), p_noisy)
    np.add.at(joint, (labels, labels), 1 - p_noisy)
    return joint


def transition_matrix(joint: Vector) -> Vector:
    """P(given label j | likely class i) from counts (C, C) of (given label i, likely class j).

    Rows sum to 1; the row of a class that is never likely is that of the identity.
    """
    likely = joint.sum(axis=0)
    return np.where(likely[:, None] > 0, joint.T / np.maximum(likely, 1e-12)[:, None], np.eye(len(joint)))


def held_out_agreement(labels: NDArray[np.int64], pred_probs: Vector, held_out: Tensor | None) -> float | None:
    """Share of held-out labels that are predicted; None where no image is held out.

    Args:
        labels: Given labels (N,).
        pred_probs: (N, C).
        held_out: Rows int64 that were not trained on.
    """
    if held_out is None or not len(held_out):
        return None
    rows = held_out.cpu().numpy()
    return float((pred_probs[rows].argmax(axis=1) == labels[rows]).mean())


def noise_interval(noise_rate: float, agreement: float, held_out: int) -> tuple[float, float]:
    """An interval of the share of wrong labels.

    A wrong label of a held-out image is not predicted, but for luck: no more are wrong than are not predicted. What of
    these the estimate does not explain are mistakes of the model, or wrong labels that it has missed; it may as well
    have taken as many right ones for wrong.

    Args:
        noise_rate: The estimate.
        agreement: Share of held-out labels that are predicted.
        held_out: How many there are.
    """
    sampling = INTERVAL_DEVIATIONS * (agreement * (1 - agreement) / held_out) ** 0.5
    width = max(0.0, 1 - agreement - noise_rate) + sampling
    return max(0.0, noise_rate - width), min(1.0, noise_rate + width)


def noise_metrics(issues: LabelIssues | None) -> dict[str, Any]:
    """What a job says of the share of wrong labels; the estimate is None where it is withheld."""
    reason = None if issues is None else issues.withheld_reason
    return {
        "estimated_noise_rate": None if issues is None or reason else issues.noise_rate,
        "noise_rate_interval": None if issues is None or issues.noise_interval is None else list(issues.noise_interval),
        "noise_rate_withheld": reason,
    }


def _sigmoid(values: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -500, 500))), dtype=np.float64)
