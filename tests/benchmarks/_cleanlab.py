"""What cleanlab makes of labels and out-of-sample probabilities: run by its own environment, for `ranking`.

Its arguments are pairs SOURCE TARGET. From each source it reads an .npz of `labels` (N,) and `probabilities` (N, C);
the target is one of a score (N,) for each of cleanlab's methods, of its label issues (N,), and of its estimate of
P(given j | true i).
"""

from __future__ import annotations

import sys

import numpy as np
from cleanlab.count import compute_confident_joint, estimate_latent
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores

SCORES = {
    "self_confidence": ("self_confidence", False),
    "normalized_margin": ("normalized_margin", False),
    "confidence_weighted_entropy": ("confidence_weighted_entropy", False),
    "self_confidence_adjusted": ("self_confidence", True),
    "normalized_margin_adjusted": ("normalized_margin", True),
}


def main(source: str, target: str) -> None:
    with np.load(source) as arrays:
        labels, probabilities = arrays["labels"], arrays["probabilities"].astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores = {
        name: get_label_quality_scores(labels, probabilities, method=method, adjust_pred_probs=adjusted)
        for name, (method, adjusted) in SCORES.items()
    }
    joint = compute_confident_joint(labels, probabilities)
    _, transition, _ = estimate_latent(joint, labels)
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    np.savez(target, **scores, issues=issues, transition=transition.T)


if __name__ == "__main__":
    for paths in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        main(*paths)
