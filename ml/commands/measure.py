"""`python -m ml measure`: the accuracies of a finished training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ml import commands, errors


def add(parsers: commands.SubParsers[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    parser = parsers.add_parser("measure", help="the test accuracies and the last epoch of a finished training")
    parser.add_argument("trained", type=Path, help="the --out folder of a training")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print them as JSON; UnusableData if no training has finished in the folder."""
    from ml.evaluation import measure
    from ml.method import ENSEMBLE

    try:
        reports = [
            json.loads(line) for line in (options.trained / commands.EPOCHS).read_text(encoding="utf-8").splitlines()
        ]
    except ValueError as error:
        raise errors.UnusableData(
            f"{options.trained / commands.EPOCHS} is damaged: {error}", code="damaged_json"
        ) from error
    except FileNotFoundError as error:
        raise errors.UnusableData(f"{options.trained} holds no finished training", code="no_training") from error
    accuracies = {
        split: [report[split].get(ENSEMBLE, {}).get("accuracy") for report in reports]
        for split in ("noisy_validation", "test")
    }
    summary = measure.summary(accuracies["noisy_validation"], accuracies["test"])
    document: dict[str, Any] = {"test_accuracy": summary, "last_epoch": reports[-1]}
    if (options.trained / commands.SELF_TEST).exists():
        document["self_test"] = commands.read_json(options.trained / commands.SELF_TEST)
    print(json.dumps(document, indent=1, allow_nan=False))
    return 0
