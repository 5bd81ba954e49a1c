"""What cleanlab makes of labels and out-of-sample probabilities: run by its environment, for `ranking` and `probes`.

Its arguments are pairs SOURCE TARGET. From each source it reads an .npz of `labels` (N,) and `probabilities` (N, C);
the target is one of a score (N,) for each of cleanlab's methods, of its label issues (N,), and of its estimate of
P(given j | true i). Where the source has `features` (N, D) too, the score `own_probe` is that of `CleanLearning`, which
then makes its own probabilities in five folds, by scikit-learn's logistic regression on these features.
"""

from __future__ import annotations

import sys

import numpy as np
from cleanlab.classification import CleanLearning
from cleanlab.count import compute_confident_joint, estimate_latent
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

SCORES = {
    "self_confidence": ("self_confidence", False),
    "normalized_margin": ("normalized_margin", False),
    "confidence_weighted_entropy": ("confidence_weighted_entropy", False),
    "self_confidence_adjusted": ("self_confidence", True),
    "normalized_margin_adjusted": ("normalized_margin", True),
}
STRENGTHS = (0.1, 0.01, 0.001, 0.0001)  # inverse L2 penalties of its own probe


def own_probe(features: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Label quality by cleanlab with a classifier of its own; its penalty explains given labels best out of fold."""
    probes = [LogisticRegression(C=strength, max_iter=400) for strength in STRENGTHS]
    best = max(probes, key=lambda probe: cross_val_score(probe, features, labels, scoring="neg_log_loss").mean())
    issues = CleanLearning(best, seed=0).find_label_issues(features, labels)
    return np.asarray(issues["label_quality"], np.float64)


def main(source: str, target: str) -> None:
    with np.load(source) as arrays:
        labels, probabilities = arrays["labels"], arrays["probabilities"].astype(np.float64)
        features = arrays.get("features")
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = {
        name: get_label_quality_scores(labels, probabilities, method=method, adjust_pred_probs=adjusted)
        for name, (method, adjusted) in SCORES.items()
    }
    if features is not None:
        scores["own_probe"] = own_probe(features, labels)
    joint = compute_confident_joint(labels, probabilities)
    _, transition, _ = estimate_latent(joint, labels)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    np.savez(target, **scores, issues=issues, transition=transition.T)


if __name__ == "__main__":
    for paths in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(*paths)
