"""The commands of `python -m ml`: a file in this folder is a command, its file name the name.

A command's module exports `add`, which adds its parser, and `run`, which returns the exit code. Importing them imports
no torch, so that the command line answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import ValidationError

from ml import errors
from ml.formats import votes
from ml.formats.table_columns import ColumnNames

if TYPE_CHECKING:
    from ml.data.container_dataset import LoadedDataset
    from ml.training.checkpoint import Newest
    from ml.training.spec import TrainingSpec
    from ml.training.trainer import Trainer

EXPECTED = (errors.Failure, ValidationError, OSError)  # errors that users can correct: one line, no traceback

# Files and folders of a training's --out folder.
CHECKPOINTS, MODEL, SPEC, EPOCHS, ISSUES = "checkpoints", "model", "spec.json", "epochs.jsonl", "label-issues.csv"
SELF_TEST = "self-test.json"
WEIGHTS = "weights"  # in the data folder: pretrained weights

SubParsers = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it


class CommandModule(Protocol):
    """The names every file in this folder exports."""

    def add(self, parsers: SubParsers[argparse.ArgumentParser]) -> None:
        """Add the command's parser, whose default `run` is the command."""
        ...


def load_all() -> list[CommandModule]:
    """The modules of all commands, in alphabetical order."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [cast("CommandModule", importlib.import_module(f"{__name__}.{name}")) for name in names]


def data_folder() -> Path:
    """The data folder of the service on this machine: DENLL_DATA_DIR, or `data` in the working folder."""
    return Path(os.environ.get("DENLL_DATA_DIR") or "data")


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    """The option that names the folder of pretrained weights."""
    parser.add_argument(
        "--weights",
        type=Path,
        default=data_folder() / WEIGHTS,
        help="folder of pretrained weights; default: that of the data folder, which `python -m ml weights` fills",
    )


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """The options that name the columns of a data set's table."""
    parser.add_argument("--path-column", help="the column with the paths of the images")
    parser.add_argument("--label-column", help="the column to learn from")
    parser.add_argument(
        "--annotator-columns",
        type=votes.parse_names,
        default=(),
        help="columns with the votes of one annotator each, separated by commas; without --label-column the "
        "majority is learned from",
    )
    parser.add_argument("--clean-column", help="the column of true labels, used for measurement alone")


def column_names(options: argparse.Namespace) -> ColumnNames:
    """The columns that the options name."""
    return ColumnNames(options.path_column, options.label_column, options.clean_column, options.annotator_columns)


def load_data(options: argparse.Namespace, spec: TrainingSpec, folder: Path) -> LoadedDataset:
    """The images of `options.data` as a training has them, whose pixels lie in `folder`; see `load_container`."""
    from ml.data import container_dataset

    return container_dataset.load_container(
        options.data,
        image_size=spec.image_size,
        resize=spec.resize,
        columns=[column_names(options)],
        folder=folder,
    )


def newest_checkpoint(trainer: Trainer, out: Path) -> Newest:
    """The newest valid checkpoint of this training in its --out folder; what cannot be used is printed."""
    from ml.training import checkpoint

    newest = checkpoint.newest([out / CHECKPOINTS], config_hash=trainer.config_hash, data_hash=trainer.data_hash)
    for skipped in newest.skipped:
        print(f"checkpoint {skipped.path} not used: {skipped.detail}", file=sys.stderr)
    return newest


def json_option(text: str) -> Any:  # any JSON value
    """The value of an option that takes JSON; for argparse's `type`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def read_json(path: Path) -> Any:  # any JSON value
    """The content of a JSON file; UnusableData where it is damaged, OSError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.UnusableData(f"{path} is not JSON: {error}", code="damaged_json") from error
