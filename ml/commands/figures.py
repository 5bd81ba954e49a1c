"""`python -m ml figures`: the figures of a training that `python -m ml train` has finished."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ml import commands

FOLDER, NUMBERS = "figures", "figures.json"


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    figures = parsers.add_parser("figures", help="the paper's figures of a finished training, as numbers and plots")
    figures.add_argument("trained", type=Path, help="the --out folder of a training")
    figures.add_argument("data", type=Path, help="the folder or archive it was trained on")
    figures.add_argument("--out", type=Path, help="default: figures/ in the training's folder")
    commands.add_column_options(figures)
    figures.add_argument("--device", help="instead of the spec's")
    figures.add_argument("--threads", type=int, help="CPU threads")
    figures.add_argument(
        "--weights", type=Path, help="folder of pretrained weights, for a training that started from them"
    )
    figures.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write figures.json and each figure as PNG and SVG.

    Raises:
        UnusableData: The folder holds no training, or the data cannot be read.
        CheckpointInvalid: No checkpoint is of a training of these data.
        Failure: The training has not finished.
    """
    from ml import errors
    from ml.evaluation import measure
    from ml.reports import plots, report_data, selftest
    from ml.training.spec import TrainingSpec
    from ml.training.trainer import Trainer

    # The training as it ended
    if not (options.trained / commands.SPEC).is_file():
        raise errors.UnusableData(f"{options.trained} holds no training", code="no_training")
    spec = TrainingSpec.model_validate_json((options.trained / commands.SPEC).read_bytes())
    out: Path = options.out or options.trained / FOLDER
    out.mkdir(parents=True, exist_ok=True)
    data = commands.load_data(options, spec, out)
    truth = data.truth
    trainer = Trainer.build(
        spec, data.images, truth=truth, device=options.device, threads=options.threads, weights=options.weights
    )
    state = commands.newest_checkpoint(trainer, options.trained).state
    if state is None:
        raise errors.CheckpointInvalid("no checkpoint of a training of this data is there")
    trainer.restore(state)
    if trainer.epoch < trainer.epochs:
        raise errors.Failure(f"the training stopped in epoch {trainer.epoch + 1} of {trainer.epochs}: finish it")

    # Its figures
    clean = selftest.reference_labels(spec, data.images, truth)
    figures = report_data.collect(
        trainer,
        data.images,
        report_data.choose_judged(trainer, data.images, truth, clean),
        wrong=measure.wrong_labels(trainer.labels, clean),
        issues=trainer.label_issues(),
    )
    (out / NUMBERS).write_text(json.dumps(figures.numbers, allow_nan=False), encoding="utf-8")
    drawn = plots.draw(figures.numbers, figures.pictures, out)
    print(f"{out}: {', '.join(drawn)}")
    return 0
