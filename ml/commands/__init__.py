"""The commands of `python -m ml`, one file each: `add` says its options, `run` does it and returns the exit code.

Free of torch until one runs, so that the command line answers at once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ml import errors
from ml.formats.table_columns import ColumnNames

EXPECTED = (errors.Failure, ValidationError, OSError)  # what users can mend: one line, and no traceback

# What a training's folder holds.
CHECKPOINTS, BUNDLE, SPEC, EPOCHS, ISSUES = "checkpoints", "bundle", "spec.json", "epochs.jsonl", "label-issues.csv"
SELF_TEST = "self-test.json"

Commands = argparse._SubParsersAction  # of ArgumentParser; argparse has no public name for it


def add_column_options(parser: argparse.ArgumentParser) -> None:
    """The options that name the columns of a data set's table."""
    parser.add_argument("--path-column", help="the column with the paths of the images")
    parser.add_argument("--label-column", help="the column to learn from")
    parser.add_argument("--clean-column", help="the column of true labels, used for measurement alone")


def column_names(options: argparse.Namespace) -> ColumnNames:
    """The columns that the options name."""
    return ColumnNames(options.path_column, options.label_column, options.clean_column)


def json_option(text: str) -> Any:  # any JSON value
    """What an option that takes JSON holds."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error


def read_json(path: Path) -> Any:  # any JSON value
    """UnusableData where the file holds none; OSError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise errors.UnusableData(f"{path} is no JSON: {error}", code="damaged_json") from error
