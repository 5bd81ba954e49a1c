"""Wrong labels found: our ranking, out of one training, against cleanlab's out of five-fold probabilities.

`python -m tests.benchmarks.ranking DATA [--only SET ...] [--seeds N] [--share X] [--keep FOLDER]` prints one JSON line
for each set, means over N seeds (3), and writes all of them as a table into `docs/evidence/ranking.md`. DATA (or
DENLL_DATA) is a folder with `cifar10`, `imagenette` and `neu_steel`: pictures beside a table with the columns `file`,
`clean` and noisy ones. KEEP holds what five folds found, so that a second run need not train them again; their cost is
kept with it.

Conditions: CPU, torch with one thread, f32, network `small`, cross-entropy, SGD 0.1 with cosine, batch 128, flip. Ours
holds a tenth out, as the service does, and ranks all labels. cleanlab gets the probabilities of all images, each by a
network of the same kind and as many epochs that did not see it. Costs are CPU time over that of our training without
its ranking. A seed draws other images and other networks. The ranking was chosen on other draws of these sets (of
`neu_steel`, on all of it); what neighbours weigh in it, on these very draws, where they add 0.7 points on average.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ml.data import decoding
from ml.data.dataset import LabeledImages
from ml.evaluation import measure
from ml.evaluation.ranking import LabelIssues
from ml.training.spec import TrainingSpec
from ml.training.trainer import Trainer
from tests.benchmarks._sizes import SMALLEST, arguments

ROOT = Path(__file__).parents[2]
PEER = ROOT / ".venv-bench" / "bin" / "python"
PAGE = ROOT / "docs" / "evidence" / "ranking.md"
FOLDS, COST = 5, 1.3
APART = 100  # between the seeds of one set
QUALITIES = ("auroc", "average_precision", "precision_at_count", "issue_precision", "issue_recall")


@dataclass(frozen=True)
class Set:
    """A draw of a data set and how long to learn it."""

    folder: str
    table: str
    column: str
    side: int
    count: int
    seed: int
    epochs: int = 12


SETS = {
    "neu_steel/sym20": Set("neu_steel", "images.csv", "sym20", 64, 900, 1),
    "cifar10/aggregate": Set("cifar10", "train.csv", "aggregate", 32, 4000, 2),
    "cifar10/random1": Set("cifar10", "train.csv", "random1", 32, 4000, 3),
    "imagenette/noise25": Set("imagenette", "train.csv", "noise25", 64, 2000, 4),
}


def read(data: Path, of: Set) -> tuple[LabeledImages, Tensor]:
    """`count` pictures drawn by the seed with their given labels, and the clean ones."""
    with (data / of.folder / of.table).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    drawn = np.sort(np.random.default_rng(of.seed).permutation(len(rows))[: of.count])
    rows = [rows[number] for number in drawn]
    classes = tuple(sorted({row["clean"] for row in rows} | {row[of.column] for row in rows}))
    squares = []
    for row in rows:
        picture = decoding.decode((data / of.folder / row["file"]).read_bytes())
        geometry = decoding.Geometry(picture.shape[1], picture.shape[0], of.side, "squash")
        squares.append(torch.from_numpy(np.array(decoding.resize(picture, geometry))))
    given = torch.tensor([classes.index(row[of.column]) for row in rows])
    return LabeledImages(torch.stack(squares), given, classes), torch.tensor([classes.index(r["clean"]) for r in rows])


def training(of: Set, labeled: LabeledImages, seed: int, held_out: float) -> Trainer:
    spec = TrainingSpec(
        method="ce", network="small", image_size=of.side, epochs=of.epochs, learning_rate=0.1, augmentation="flip",
        precision="f32", seed=seed, validation_fraction=held_out,
    )  # fmt: skip
    return Trainer.build(spec, labeled, device="cpu", threads=1)


def ours(of: Set, labeled: LabeledImages) -> tuple[LabelIssues, float, float]:
    """The ranking, CPU seconds of the training, and how many of them went into recording logits and ranking."""
    spent = [0.0]

    def clocked(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            started = time.process_time()
            try:
                return work(*arguments)
            finally:
                spent[0] += time.process_time() - started

        return run

    started = time.process_time()
    trained = training(of, labeled, of.seed, 0.1)
    for name in ("record_logits", "end_epoch"):
        setattr(trained.margins, name, clocked(getattr(trained.margins, name)))
    list(trained)
    issues = clocked(trained.label_issues)()
    assert issues is not None
    return issues, time.process_time() - started, spent[0]


def five_folds(of: Set, labeled: LabeledImages) -> tuple[NDArray[np.float32], float]:
    """Probabilities (N, C) of every image by the network that did not see it, and the CPU seconds they took."""
    started = time.process_time()
    probabilities_by_row = np.zeros((len(labeled), len(labeled.classes)), dtype=np.float32)
    fold = np.random.default_rng(of.seed).permutation(len(labeled)) % FOLDS
    for number in range(FOLDS):
        inside, outside = (torch.from_numpy(np.flatnonzero(part)) for part in (fold != number, fold == number))
        part = LabeledImages(labeled.images[inside], labeled.labels[inside], labeled.classes)
        trained = training(of, part, FOLDS * of.seed + number, 0.0)
        list(trained)
        trained.method.eval()
        scale = [statistic.float().view(1, 3, 1, 1) for statistic in (trained.mean, trained.std)]
        with torch.no_grad():
            for rows in torch.split(outside, 256):
                normalised_input = labeled.images[rows].permute(0, 3, 1, 2).float() / 255
                probabilities_by_row[rows] = (
                    trained.method.logits((normalised_input - scale[0]) / scale[1]).softmax(dim=1).numpy()
                )
    return probabilities_by_row, time.process_time() - started


def cleanlabs(given: Tensor, probabilities: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What cleanlab says, in its own environment (`_cleanlab`)."""
    with TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npz", f"{folder}/out.npz"
        np.savez(source, labels=given.numpy(), probabilities=probabilities)
        subprocess.run([PEER, "-m", f"{__package__}._cleanlab", source, target], check=True, cwd=ROOT)
        with np.load(target) as arrays:
            return dict(arrays)


def qualities(score: NDArray[Any], flagged: NDArray[Any], given: Tensor, clean: Tensor) -> dict[str, float]:
    """Those of `measure.ranking_quality`, in per cent."""
    issues = LabelIssues(score, given.numpy(), flagged, 0.0, np.eye(1), np.empty((0, 1)), np.empty((0, 1)))
    quality = measure.ranking_quality(issues, given, clean)
    assert quality is not None
    return {name: round(100 * quality[name], 1) for name in QUALITIES}


def transition_error(estimated: NDArray[Any], given: Tensor, clean: Tensor) -> float:
    """Mean over classes of the total variation between a row of P(given | true) and its estimate."""
    truth = np.zeros_like(estimated)
    np.add.at(truth, (clean.numpy(), given.numpy()), 1)
    return float(np.abs(truth / truth.sum(axis=1, keepdims=True) - estimated).sum(axis=1).mean() / 2)


def compared(of: Set, data: Path, keep: Path | None) -> dict[str, Any]:
    """One draw of a set."""
    labeled, clean = read(data, of)
    given = labeled.labels
    issues, seconds, ranking_seconds = ours(of, labeled)
    cache_file = None if keep is None else keep / f"{of.folder}-{of.column}-{of.count}-{of.seed}.npz"
    if cache_file is not None and cache_file.exists():
        with np.load(cache_file) as arrays:
            probabilities, fold_seconds = arrays["probabilities"], float(arrays["over_one_training"]) * seconds
    else:
        probabilities, fold_seconds = five_folds(of, labeled)
        if cache_file is not None:
            cache_file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache_file, probabilities=probabilities, over_one_training=fold_seconds / seconds)
    theirs = cleanlabs(given, probabilities)
    flagged, transition = theirs.pop("issues"), theirs.pop("transition")
    scores = {method: qualities(score, flagged, given, clean) for method, score in theirs.items()}
    us = qualities(issues.label_score, issues.is_label_issue, given, clean)
    rate = float((given != clean).double().mean())
    return {
        "noise_rate": 100 * rate,
        "ours": us | _counted(issues.noise_rate, rate, transition_error(issues.transition, given, clean)),
        "cleanlab": scores["self_confidence"]
        | _counted(float(flagged.mean()), rate, transition_error(transition, given, clean)),
        "scores": {method: score["average_precision"] for method, score in scores.items()},
        "gain": us["average_precision"] - scores["self_confidence"]["average_precision"],
        "cost": seconds / (seconds - ranking_seconds),
        "cleanlab_cost": fold_seconds / (seconds - ranking_seconds),
    }


def over_seeds(name: str, data: Path, keep: Path | None, share: float, seeds: int) -> dict[str, Any]:
    """The line of a set: means over draws."""
    of = replace(SETS[name], count=round(share * SETS[name].count))
    comparisons = [compared(replace(of, seed=of.seed + APART * number), data, keep) for number in range(seeds)]
    mean = _mean(comparisons)
    best = max(mean["scores"], key=mean["scores"].__getitem__)
    return {
        "id": "R1",
        "benchmark": f"{name}: average precision over cleanlab's",
        "measured": mean["gain"],
        "target": ">= 0",
        "met": mean["ours"]["average_precision"] >= mean["scores"][best] and mean["cost"] <= COST,
        "set": name,
        "images": of.count,
        "epochs": of.epochs,
        "seeds": seeds,
        "gains": [round(comparison["gain"], 1) for comparison in comparisons],
        "cleanlab_best_score": best,
        **mean,
    }


def _mean(values: list[Any]) -> Any:  # of dictionaries of dictionaries of numbers
    if isinstance(values[0], dict):
        return {name: _mean([entry[name] for entry in values]) for name in values[0]}
    mean = sum(values) / len(values)
    return round(mean, 1 if abs(mean) >= 5 else 2)


def _counted(estimated: float, rate: float, error: float) -> dict[str, float]:
    return {"count_over_truth": estimated / rate, "transition_error": error}


def page(lines: list[dict[str, Any]]) -> str:
    """The evidence as Markdown: conditions, and two rows for each set."""
    assert __doc__ is not None
    conditions = __doc__[__doc__.index("Conditions:") :].replace("\n", " ").replace("  ", "\n\n").strip()
    head = [
        "# Ranking wrong labels",
        "",
        "`make bench-ranking DATA=folder` writes this page. AP: average precision; P@: precision at the true count,",
        "both in per cent; flagged: precision / recall of the labels called wrong; count: how many are said to be",
        "wrong, over the truth; T: total variation between estimated and true transition matrix, mean over classes.",
        "cleanlab ranks by self-confidence; the best of its five scores stands behind it, the gain on it behind ours.",
        "",
        conditions,
        "",
        "| set | images, epochs, seeds | wrong | ranked by | AUROC | AP | P@ | flagged | count | T | cost |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        about = f"{line['set']} | {line['images']}, {line['epochs']}, {line['seeds']} | {line['noise_rate']} %"
        score = line["cleanlab_best_score"]
        best = f" (best: {score.replace('_', ' ')}, {line['scores'][score]})"
        gains = f" (by seed {', '.join(f'{gain:+}' for gain in line['gains'])})"
        for name, who, cost, note in (
            (about, "ours", line["cost"], gains),
            (" | | ", "cleanlab", line["cleanlab_cost"], best),
        ):
            q = line[who]
            head.append(
                f"| {name} | {who} | {q['auroc']} | {q['average_precision']}{note} | {q['precision_at_count']} | "
                f"{q['issue_precision']} / {q['issue_recall']} | {q['count_over_truth']} | {q['transition_error']} | "
                f"{cost} |"
            )
    return "\n".join(head) + "\n"


def absent(data: Path | None) -> str | None:
    """Why it cannot be measured here, if it cannot."""
    if data is None or not data.is_dir():
        return "no data: give the folder of the data sets as an argument or as DENLL_DATA"
    if not PEER.exists():
        return "no cleanlab: run `make bench-ranking`, which builds its environment"
    return None


def write_smallest_set(data: Path) -> Set:
    """Forty pictures of noise below `data`, every fourth label wrong: enough to show that our part runs."""
    folder = data / "smallest"
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "images.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label", "clean"])
        for number in range(40):
            clean, wrong = number % 2, number % 4 == 0
            pixels = random.integers(0, 128, (16, 16, 3), dtype=np.uint8) + np.uint8(100 * clean)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", "ab"[1 - clean if wrong else clean], "ab"[clean]])
    return Set("smallest", "images.csv", "label", 16, 40, 1, epochs=2)


def run_smallest() -> None:
    """Our part of the comparison; cleanlab is left out."""
    with TemporaryDirectory() as folder:
        of = write_smallest_set(Path(folder))
        labeled, clean = read(Path(folder), of)
        issues, seconds, ranking_seconds = ours(of, labeled)
        quality = qualities(issues.label_score, issues.is_label_issue, labeled.labels, clean)
        error = transition_error(issues.transition, labeled.labels, clean)
        five_folds(of, labeled)
    line: dict[str, Any] = {
        "id": "R1",
        "benchmark": "wrong labels: average precision over cleanlab's",
        "measured": None,
    }
    line |= {"target": ">= 0", "met": None, "why": "smallest size, without cleanlab", "transition_error": error}
    print(json.dumps(line | {"cost": seconds / (seconds - ranking_seconds), **quality}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Our ranking of wrong labels against cleanlab's.")
    parser.add_argument("data", type=Path, nargs="?", default=os.environ.get("DENLL_DATA") or None)
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3, help="draws of each set")
    parser.add_argument("--share", type=float, default=1.0, help="of the images, where time is short")
    parser.add_argument("--keep", type=Path, help="where five-fold probabilities are kept from run to run")
    options = parser.parse_args(arguments())
    torch.set_num_threads(1)
    if SMALLEST:
        run_smallest()
        return 0
    data = None if options.data is None else Path(options.data)
    if (why := absent(data)) is not None or data is None:
        line = {"id": "R1", "benchmark": "wrong labels: average precision over cleanlab's", "measured": None}
        print(json.dumps(line | {"target": ">= 0", "met": None, "why": why}), flush=True)
        return 0
    lines = []
    for name in options.only:
        lines.append(over_seeds(name, data, options.keep, options.share, options.seeds))
        print(json.dumps(lines[-1]), flush=True)
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
